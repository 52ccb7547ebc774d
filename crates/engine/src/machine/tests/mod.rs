//! The machine by tables and properties.

pub(crate) mod order;
mod properties;
mod sim;
mod tables;
