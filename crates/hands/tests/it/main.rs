//! The hands as a server sees them: the real program, through the real client, on plain processes.

mod backend;
mod bash;
mod disk;
mod files;
mod harness;
mod protocol;
mod relay;
mod run;
mod search;
mod transfer;
