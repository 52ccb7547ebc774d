//! The program inside a sandbox. See the library for the protocol, `program` for how it works.

mod program;

use std::{env, process::ExitCode, time::Duration};

use program::{Options, Socket, relay, serve};

const USAGE: &str = "\
Usage: selfsame-hands serve [--socket @NAME|PATH] [--workdir DIR] [--outputs DIR]
                            [--tool-outputs DIR] [--max-timeout-ms N]
       selfsame-hands connect [--socket @NAME|PATH]
";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let mut options = Options {
        socket: Socket::parse(selfsame_hands::DEFAULT_SOCKET),
        workdir: "/workspace".into(),
        outputs: "/mnt/session/outputs".into(),
        tool_outputs: "/mnt/session/tool-outputs".into(),
        max_timeout: Duration::from_secs(600),
    };
    while let Some(name) = arguments.next() {
        let Some(value) = arguments.next() else {
            return usage();
        };
        match name.as_str() {
            "--socket" => options.socket = Socket::parse(&value),
            "--workdir" => options.workdir = value.into(),
            "--outputs" => options.outputs = value.into(),
            "--tool-outputs" => options.tool_outputs = value.into(),
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
