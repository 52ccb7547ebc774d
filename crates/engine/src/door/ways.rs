use std::sync::atomic::{AtomicBool, Ordering};

use selfsame_sandbox::{DoorState, Sandbox};
use tracing::{debug, info, warn};

/// Says in the log how programs in sandboxes get to the door: once, because it depends on the
/// runtime and not on the session.
pub(crate) fn tell(sandbox: &Sandbox) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    let sandbox = sandbox.clone();
    tokio::spawn(async move {
        match sandbox.door().await {
            Ok(DoorState::Redirect) => {
                info!("connections of programs in sandboxes are redirected to the door");
            }
            Ok(DoorState::Ports { reason }) => warn!(
                reason,
                "connections cannot be redirected to the door: programs in sandboxes that use no \
                 proxy reach ports 22, 80 and 443 by name, and nothing else"
            ),
            Ok(DoorState::None { reason }) => {
                warn!(reason, "there is no door between sandboxes and the network");
            }
            Err(error) => {
                debug!(%error, "a sandbox did not say how programs get to the door");
                TOLD.store(false, Ordering::Relaxed);
            }
        }
    });
}
