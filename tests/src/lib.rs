//! Black-box tests of the `selfsame` binary, in `src/main.rs`.
//! One binary for all of them: one link, one process per test under nextest.
