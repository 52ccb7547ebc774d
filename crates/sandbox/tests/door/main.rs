//! The inner half of the door on real Docker: what programs in a container see of it, and what of
//! them comes out at the server.

mod confined;
mod harness;
mod load;
mod ports;
mod reach;
mod trust;
