//! The machine by tables and properties.

pub(crate) mod order;
mod outcomes;
mod properties;
mod sim;
mod tables;
mod threads;
