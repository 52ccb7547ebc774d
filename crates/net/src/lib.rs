//! The way out: the only place that builds HTTP clients, and that dials for sandboxes.
//!
//! Two kinds of address exist. Some are given by **users** of the API (MCP servers, webhooks, OAuth
//! endpoints, pages to fetch): requests to them go through [`guarded_client`], which cannot be talked
//! into reaching inside. Some are given by the **operator** (model providers): they may well be on
//! loopback, and [`operator_client`] goes wherever it is told, but follows no redirect, because the
//! keys in its requests belong to one host.
//!
//! What counts as inside is one table, [`address::SPECIAL`]. The operator may list exceptions in a
//! [`Policy`]; the table itself has no switch. The policy judges *addresses at the moment of
//! connecting*, so that a name that changes its answer between a check and its use gains nothing.

pub mod address;
mod client;
mod dial;
pub mod hosts;
mod names;
mod policy;
mod tls;

pub use client::{
    Chosen, Limits, NetError, OperatorOptions, guarded_client, guarded_client_with,
    operator_client, read_limited, read_start, refusal, relay_client,
};
pub use dial::DialError;
pub use hosts::{HostPattern, Hosts, NotAHost};
pub use names::{Lookup, StaticHost, SystemLookup};
pub use policy::{Policy, Refused};
pub use reqwest;
pub use tls::tls_client;
