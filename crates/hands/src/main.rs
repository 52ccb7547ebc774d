//! The program inside a sandbox. See the library for the protocol, `program` for how it works.

mod program;

use std::{env, process::ExitCode, time::Duration};

use program::{Options, Places, Socket, relay, serve};

const USAGE: &str = "\
Usage: selfsame-hands serve [--socket @NAME|PATH] [--root DIR] [--low-water BYTES]
                            [--max-timeout-ms N]
       selfsame-hands connect [--socket @NAME|PATH]
";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let mut options = Options {
        socket: Socket::parse(selfsame_hands::DEFAULT_SOCKET),
        places: Places::new("/"),
        low_water: 0,
        max_timeout: Duration::from_secs(600),
    };
    while let Some(name) = arguments.next() {
        let Some(value) = arguments.next() else {
            return usage();
        };
        match name.as_str() {
            "--socket" => options.socket = Socket::parse(&value),
            "--root" => options.places = Places::new(value),
            "--low-water" => match value.parse() {
                Ok(bytes) => options.low_water = bytes,
                Err(_) => return usage(),
            },
            "--max-timeout-ms" => match value.parse() {
                Ok(millis) => options.max_timeout = Duration::from_millis(millis),
                Err(_) => return usage(),
            },
            _ => return usage(),
        }
    }
    let result = match command.as_str() {
        "serve" => serve(options),
        "connect" => relay(&options.socket),
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selfsame-hands: {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(2)
}
