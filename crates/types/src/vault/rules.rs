//! What holds for credentials, new and changed.

use secrecy::{ExposeSecret as _, SecretString};

use super::{CredentialNetworking, InjectionLocation, InjectionLocationParams};
use crate::{ApiError, Patch, Timestamp, check};

pub(super) const MAX_DISPLAY_NAME: usize = 255;
/// Longest name of a variable.
pub(super) const MAX_NAME: usize = 255;
/// Longest client id, scope and resource indicator.
pub(super) const MAX_PARAMETER: usize = 2048;
/// Longest secret, in bytes: what a server takes in a header line, and more.
const MAX_SECRET: usize = 16 * 1024;
const MAX_HOSTS: usize = 16;
pub(super) const CLIENT_SECRET: &str = "auth.refresh.token_endpoint_auth.client_secret";

/// A secret is stored as it is and judged by those it is shown to.
pub(super) fn check_secret(at: &str, secret: &SecretString) -> Result<(), ApiError> {
    let length = secret.expose_secret().len();
    if (1..=MAX_SECRET).contains(&length) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{at}: must have 1 to {MAX_SECRET} bytes, has {length}"
    )))
}

pub(super) fn checked(
    at: &str,
    secret: Option<SecretString>,
) -> Result<Option<SecretString>, ApiError> {
    secret
        .map(|secret| check_secret(at, &secret).map(|()| secret))
        .transpose()
}

pub(super) fn check_expiry(at: Timestamp, now: Timestamp) -> Result<Timestamp, ApiError> {
    if at > now {
        return Ok(at.storable());
    }
    Err(ApiError::invalid(
        "auth.expires_at: must be in the future; leave it out when it is not known",
    ))
}

pub(super) fn check_networking(networking: &CredentialNetworking) -> Result<(), ApiError> {
    let CredentialNetworking::Limited(limited) = networking else {
        return Ok(());
    };
    let at = "auth.networking.allowed_hosts";
    check::count(at, limited.allowed_hosts.len(), 0..=MAX_HOSTS)?;
    for (index, host) in limited.allowed_hosts.iter().enumerate() {
        check::host(host)
            .map_err(|reason| ApiError::invalid(format!("{at}[{index}]: {reason}")))?;
    }
    Ok(())
}

pub(super) fn merge_location(
    given: Patch<InjectionLocationParams>,
    current: InjectionLocation,
) -> Result<InjectionLocation, ApiError> {
    let at = "auth.injection_location";
    let null = |at: &str| ApiError::invalid(format!("{at}: cannot be null; omit it"));
    let given = match given {
        Patch::Absent => return Ok(current),
        Patch::Null => return Err(null(at)),
        Patch::Value(given) => given,
    };
    let place = |name: &str, place, current| match place {
        Patch::Absent => Ok(current),
        Patch::Null => Err(null(&format!("{at}.{name}"))),
        Patch::Value(place) => Ok(place),
    };
    let merged = InjectionLocation {
        header: place("header", given.header, current.header)?,
        body: place("body", given.body, current.body)?,
    };
    if merged.header || merged.body {
        return Ok(merged);
    }
    Err(ApiError::invalid(format!(
        "{at}: `header` or `body` must be true"
    )))
}

/// Refuses another value than the stored one, where it can never change.
pub(super) fn check_same(
    at: &str,
    sent: Option<String>,
    stored: Option<&String>,
) -> Result<(), ApiError> {
    match sent {
        Some(sent) if Some(&sent) != stored => {
            Err(immutable(at, stored.map_or("", String::as_str)))
        }
        _ => Ok(()),
    }
}

pub(super) fn immutable(at: &str, stored: &str) -> ApiError {
    ApiError::invalid(format!(
        "{at}: is `{}` and cannot be changed; archive this credential and create another one",
        check::excerpt(stored)
    ))
}
