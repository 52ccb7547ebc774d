//! Black-box tests of the `selfsame` binary: real processes, a database each, a scripted model.

mod canary;
mod client;
mod containers;
mod content;
mod crash;
mod docker;
mod escape;
mod lifecycle;
mod outcomes;
mod programs;
mod receiver;
mod repositories;
mod rotation;
mod sandboxes;
mod secrets;
mod servers;
mod site;
mod skills;
mod standins;
mod stream;
mod threads;
mod web;
mod webhooks;
mod workbench;
mod world;
