//! Black-box tests of the `selfsame` binary: real processes, a database each, a scripted model.

mod client;
mod containers;
mod crash;
mod docker;
mod lifecycle;
mod programs;
mod sandboxes;
mod servers;
mod standins;
mod stream;
mod workbench;
mod world;
