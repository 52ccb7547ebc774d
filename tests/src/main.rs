//! Black-box tests of the `selfsame` binary: real processes, a database each, a scripted model.

mod client;
mod containers;
mod content;
mod crash;
mod lifecycle;
mod sandboxes;
mod servers;
mod site;
mod stream;
mod web;
mod workbench;
mod world;
