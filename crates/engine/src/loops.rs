//! Background loops: heartbeat, claims, hints from other servers, sweep, sandboxes, purge.
//!
//! Each takes no input, wakes by a hint and by a timer, and has one code path for start, steady state
//! and recovery.

use std::{collections::HashMap, sync::Arc, time::Duration};

use selfsame_store::{Claimed, GRACE};

use crate::{
    Inner,
    hub::Preview,
    notifier::{Hint, INTEREST, Line, RemotePreview},
    prompt::Spec,
    runner::Start,
    sessions::UNREADABLE_PAUSE,
};

/// Claims at once: after a start there may be thousands of sessions, and other servers too.
const CLAIM_BATCH: i64 = 32;
/// A session's sandbox is given up when its backend has had no server for this long.
const ORPHAN_AFTER: Duration = Duration::from_secs(60);
/// The sweep over watched sessions is a safety net under the notifications.
const SWEEP: Duration = Duration::from_secs(5);
const REAP: Duration = Duration::from_secs(10);
/// Every so many rounds the reaper also looks for containers without a row.
const ORPHAN_ROUNDS: u32 = 6;
const PURGE: Duration = Duration::from_secs(30);
const PURGE_CHUNK: i64 = 5000;
/// Access tokens that expire within ten minutes are refreshed.
const CREDENTIALS: Duration = Duration::from_secs(60);
const CONTENTS: Duration = Duration::from_secs(60);
const STRAYS: Duration = Duration::from_hours(12);
const FORGET_SERVERS: Duration = Duration::from_hours(24);

pub(crate) async fn start(inner: &Arc<Inner>) -> Result<(), selfsame_store::StoreError> {
    heartbeat_once(inner).await?;
    spawn(inner, |inner| async move { heartbeat(&inner).await });
    spawn(inner, |inner| async move { claims(&inner).await });
    spawn(inner, |inner| async move { inner.notifier.run().await });
    spawn(
        inner,
        |inner| async move { inner.notifier.run_previews().await },
    );
    spawn(inner, |inner| async move { interest(&inner).await });
    spawn(inner, |inner| async move { listen(&inner).await });
    spawn(inner, |inner| async move { sweep(&inner).await });
    spawn(inner, |inner| async move { warm(&inner).await });
    spawn(inner, |inner| async move { reap(&inner).await });
    spawn(inner, |inner| async move { purge(&inner).await });
    spawn(inner, |inner| async move { contents(&inner).await });
    spawn(inner, |inner| async move { credentials(&inner).await });
    inner.deliverer.start();
    Ok(())
}

/// Runs a loop until the server drains.
fn spawn<F>(inner: &Arc<Inner>, run: impl FnOnce(Arc<Inner>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = inner.shutdown.clone();
    let running = run(Arc::clone(inner));
    inner.tasks.spawn(async move {
        tokio::select! {
            () = running => {}
            () = shutdown.cancelled() => {}
        }
    });
}

/// Up to a quarter more than `period`, so that servers do not act in step.
pub(crate) fn jittered(period: Duration) -> Duration {
    period + period.mul_f64(rand::random::<f64>() / 4.0)
}

async fn heartbeat_once(inner: &Inner) -> Result<(), selfsame_store::StoreError> {
    inner
        .store
        .server_heartbeat(inner.server, inner.sandboxes.backend_name())
        .await
}

async fn heartbeat(inner: &Inner) {
    loop {
        tokio::time::sleep(inner.config.lease_ttl / 3).await;
        if let Err(error) = heartbeat_once(inner).await {
            tracing::warn!(%error, "cannot send a heartbeat");
        }
    }
}

async fn claims(inner: &Arc<Inner>) {
    let period = (inner.config.lease_ttl / 4).min(Duration::from_secs(1));
    loop {
        let hint = inner.claims.notified();
        let room = i64::try_from(inner.room()).unwrap_or(i64::MAX);
        let limit = CLAIM_BATCH.min(room);
        let claimed = if limit > 0 {
            inner
                .store
                .session_claim(
                    inner.server,
                    inner.sandboxes.backend_name(),
                    inner.config.lease_ttl,
                    ORPHAN_AFTER,
                    limit,
                )
                .await
                .unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot claim sessions");
                    Vec::new()
                })
        } else {
            Vec::new()
        };
        let full = claimed.len() == usize::try_from(CLAIM_BATCH).unwrap_or(usize::MAX);
        for claim in claimed {
            take(inner, claim).await;
        }
        let pause = if full { period / 10 } else { period };
        tokio::select! {
            () = hint => {}
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

/// Starts to drive a session that was claimed.
async fn take(inner: &Arc<Inner>, claim: Claimed) {
    let Claimed { session, epoch, .. } = claim;
    let record = match inner.store.session_load(session).await {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(%session, %error, "cannot load a claimed session");
            inner.give_up(session, epoch, Duration::ZERO).await;
            return;
        }
    };
    let Some(record) = record else {
        tracing::error!(%session, "claimed a session that is deleted");
        inner.give_up(session, epoch, UNREADABLE_PAUSE).await;
        return;
    };
    let spec = Spec::read(&record.agent, &record.environment, &inner.models);
    let machine = serde_json::from_str(&record.machine);
    match (spec, machine) {
        (Ok(spec), Ok(machine)) => {
            tracing::info!(%session, epoch, unclean = claim.unclean, "driving a session");
            let start = Start {
                session,
                epoch,
                machine,
                last_seq: record.last_seq,
                spec: Arc::new(spec),
                equipped: record.equipped,
                unclean: claim.unclean,
                begun: Vec::new(),
                rows: Vec::new(),
            };
            inner.drive(start, None);
        }
        (spec, machine) => {
            tracing::error!(%session, spec = ?spec.err(), machine = ?machine.err(),
                "a stored session cannot be read");
            inner.give_up(session, epoch, UNREADABLE_PAUSE).await;
        }
    }
}

/// Hints from other servers, over one connection that is made again when it breaks.
async fn listen(inner: &Arc<Inner>) {
    loop {
        match inner.store.listen().await {
            Ok(mut listener) => {
                // Whatever was said while nobody listened. Previews that were lost leave a hole.
                inner.hub.cut_previews();
                inner.vaults.forget_all();
                sweep_once(inner).await;

                inner.claims.notify_one();
                loop {
                    match listener.next().await {
                        Ok(payload) => {
                            for line in inner.notifier.read(&payload) {
                                match line {
                                    Line::Hint(hint) => heard(inner, hint),
                                    Line::Preview(preview) => show(inner, &preview),
                                    Line::Vaults(Some(id)) => inner.vaults.forget(id),
                                    Line::Vaults(None) => inner.vaults.forget_all(),
                                }
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the listening connection broke");
                            break;
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for other servers");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// A piece of a message that another server generates.
fn show(inner: &Inner, preview: &RemotePreview) {
    let RemotePreview {
        session,
        thread,
        span_seq,
        event,
        kind,
        text,
    } = preview;
    if inner.hub.is_watched(*session) {
        inner.hub.preview(
            *session,
            Preview::new(*thread, *span_seq, *event, *kind, text),
        );
    }
}

/// Renews what this server's clients want previews of.
async fn interest(inner: &Inner) {
    loop {
        tokio::time::sleep(jittered(INTEREST / 3)).await;
        for session in inner.hub.previewed() {
            inner.notifier.interested(session);
        }
    }
}

fn heard(inner: &Arc<Inner>, hint: Hint) {
    if hint.equipped {
        inner.reequip(hint.session);
    }
    if hint.interest {
        inner.notifier.note_interest(hint.session);
    }
    if hint.seq > 0 {
        inner.hub.hint(hint.session, hint.seq);
        inner.runners.poke(hint.session);
    }
    if hint.deleted {
        inner.hub.deleted(hint.session);
    }
    if hint.wake {
        inner.claims.notify_one();
    }
}

async fn sweep(inner: &Inner) {
    let mut unused = HashMap::new();
    loop {
        tokio::time::sleep(jittered(SWEEP)).await;
        sweep_once(inner).await;
        inner.hub.trim();
        if let Err(error) = inner.release_unused(&mut unused).await {
            tracing::warn!(%error, "cannot look for unused leases");
        }
    }
}

/// One query for everything that is watched or driven here.
async fn sweep_once(inner: &Inner) {
    let mut known: HashMap<_, _> = inner.hub.watched().into_iter().collect();
    for (session, seq) in inner.runners.seen() {
        known
            .entry(session)
            .and_modify(|least| *least = seq.min(*least))
            .or_insert(seq);
    }
    if known.is_empty() {
        return;
    }
    let known: Vec<_> = known.into_iter().collect();
    match inner.store.event_sweep(&known).await {
        Ok(moved) => {
            for moved in moved {
                inner.hub.hint(moved.session, moved.seq);
                if moved.deleted {
                    inner.hub.deleted(moved.session);
                }
                inner.runners.poke(moved.session);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot sweep"),
    }
}

async fn warm(inner: &Inner) {
    // One is taken because a session is about to work in it: making the next one takes a whole core for
    // a while, and must not begin under that session's first command.
    const REFILL_AFTER: Duration = Duration::from_millis(250);
    loop {
        let pause = match inner.sandboxes.warm_one().await {
            Ok(true) => continue,
            Ok(false) => Duration::from_secs(1),
            Err(error) => {
                tracing::warn!(%error, "cannot make a warm sandbox");
                Duration::from_secs(10)
            }
        };
        tokio::select! {
            () = inner.sandboxes.taken() => tokio::time::sleep(REFILL_AFTER).await,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

async fn reap(inner: &Inner) {
    let mut round = 0_u32;
    loop {
        if let Err(error) = inner
            .sandboxes
            .reap(round.is_multiple_of(ORPHAN_ROUNDS))
            .await
        {
            tracing::warn!(%error, "cannot reap sandboxes");
        }
        if round.is_multiple_of(ORPHAN_ROUNDS)
            && let Err(error) = inner.images.reap().await
        {
            tracing::warn!(%error, "cannot reap images");
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = inner.sandboxes.released() => {}
            () = tokio::time::sleep(jittered(REAP)) => {}
        }
    }
}

async fn purge(inner: &Inner) {
    loop {
        tokio::time::sleep(jittered(PURGE)).await;
        loop {
            match inner.store.session_purge(16, PURGE_CHUNK).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot purge deleted sessions");
                    break;
                }
            }
        }
        loop {
            let retention = inner.webhooks.config.retention;
            match inner.store.webhook_purge(retention, PURGE_CHUNK).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot purge old deliveries of webhooks");
                    break;
                }
            }
        }
        if let Err(error) = inner.store.server_forget(FORGET_SERVERS).await {
            tracing::warn!(%error, "cannot forget old servers");
        }
    }
}

/// Files that expire, and contents that nothing needs any more.
async fn contents(inner: &Inner) {
    loop {
        tokio::time::sleep(jittered(CONTENTS)).await;
        loop {
            match inner.store.file_expire().await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot let files expire");
                    break;
                }
            }
        }
        if let Err(error) = inner.store.blob_sweep(GRACE).await {
            tracing::warn!(%error, "cannot sweep contents");
        }
        match inner.store.blob_find_strays(STRAYS).await {
            Ok(0) => {}
            Ok(found) => tracing::info!(found, "found contents that no row knew"),
            Err(error) => tracing::warn!(%error, "cannot look for stray contents"),
        }
    }
}

/// Access tokens that expire soon, also while no session uses them.
async fn credentials(inner: &Inner) {
    loop {
        inner.vaults.refresh_due().await;
        tokio::time::sleep(jittered(CREDENTIALS)).await;
    }
}
