fn main() {
    print!("{}", selfsame_server::router::document());
}
