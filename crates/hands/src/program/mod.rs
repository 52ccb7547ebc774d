//! The program itself, as opposed to the protocol in the library.
//!
//! ```text
//! serve ── accept loop ── session (one per admitted server; a new one ends the older ones)
//!   │                        └── substream (one per request) ── waits for ─┐
//!   ├── reaper                                                             │
//!   ├── calls: one task per call, whatever happens to sessions ◄───────────┤
//!   │      └── tools: shells (one per thread), files, search               │
//!   ├── transfers and runs: they end with their substream ◄────────────────┘
//!   └── door: names and connections of what runs inside, carried by the newest session
//! ```
//!
//! Everything runs on one thread, except file work, which has a few threads of its own.

mod calls;
mod children;
mod disk;
mod door;
mod files;
mod grep;
mod output;
mod outputs;
mod places;
mod relay;
mod run;
mod search;
mod serve;
mod shell;
mod socket;
mod tools;
mod transfer;
mod walk;

use std::{
    env,
    ffi::OsString,
    sync::{Mutex, PoisonError},
};

pub(crate) use places::Places;
pub(crate) use relay::relay;
pub(crate) use serve::{Options, serve};
pub(crate) use socket::Socket;

/// What the server adds to the environment: the session's own.
static VARIABLES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Takes the place of what was set before. A shell that runs keeps what it started with.
fn set_variables(mut variables: Vec<(String, String)>) {
    // One that no program can be given would keep all of them from starting.
    variables.retain(|(name, value)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    });
    *VARIABLES.lock().unwrap_or_else(PoisonError::into_inner) = variables;
}

/// The environment of everything that is started: this process's own, without what belongs to the
/// server, with what programs expect to find, and with the session's variables.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let mut own: Vec<(OsString, OsString)> = env::vars_os()
        .filter(|(name, _)| {
            let name = name.as_encoded_bytes();
            !name.starts_with(b"ANTHROPIC_")
                && !name.starts_with(b"SELFSAME_")
                && !matches!(name, b"TERM" | b"PS1" | b"PS2" | b"BASH_ENV" | b"ENV")
        })
        .collect();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = [("PATH", path.into()), ("HOME", "/root".into())];
    for (name, value) in expected.into_iter().chain(door::environment()) {
        if !own.iter().any(|(own, _)| own == name) {
            own.push((name.into(), value));
        }
    }
    own.push(("TERM".into(), "dumb".into()));
    // Later ones win: the session's count more than the image's.
    let variables = VARIABLES.lock().unwrap_or_else(PoisonError::into_inner);
    own.extend(
        variables
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    );
    own.into_iter()
}
