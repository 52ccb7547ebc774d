//! How a server is admitted to a sandbox, before anything else is said.
//!
//! ```text
//! server                                          hands
//!   magic, nonce S, epoch                 ──►
//!                                         ◄──  magic, nonce S, nonce H, boot id, keyed?
//!   keyed: MAC(key, "server", all above)  ──►
//!   not:   the key
//!                                         ◄──  verdict, highest epoch, MAC(key, "hands", ...)
//! ```
//!
//! All four messages have a fixed length, so there is nothing to bound. The first admission after
//! the hands' start, which comes before any command has run, sets the key; from then on nobody
//! without it is let in, whatever runs inside. Both nonces are in every MAC: a recorded hello is
//! worth nothing. yamux starts after the verdict.

use std::{fmt, io};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

const SERVER_MAGIC: [u8; 16] = *b"selfsame-srv-1\r\n";
const HANDS_MAGIC: [u8; 16] = *b"selfsame-hnd-1\r\n";

const ADMITTED: u8 = 0;
const STALE_EPOCH: u8 = 1;
const WRONG_KEY: u8 = 2;

/// What a server proves itself with. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// A new random key.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        Ok(Self(random()?))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("the other side does not speak this protocol")]
    NotOurs,
    #[error("epoch {epoch} is below {current}")]
    StaleEpoch { epoch: u64, current: u64 },
    #[error("wrong key")]
    WrongKey,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// `N` random bytes (at most 256) from the operating system.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Everything both sides have seen when they compute a MAC.
struct Transcript {
    server_nonce: [u8; 16],
    hands_nonce: [u8; 16],
    boot_id: [u8; 16],
    epoch: u64,
}

impl Transcript {
    fn mac(&self, key: &Key, role: &[u8], extra: &[u8]) -> Hmac<Sha256> {
        // HMAC itself fills a shorter key up with zeros to the hash's block.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&key.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(role);
        mac.update(&self.server_nonce);
        mac.update(&self.hands_nonce);
        mac.update(&self.boot_id);
        mac.update(&self.epoch.to_be_bytes());
        mac.update(extra);
        mac
    }
}

/// The server's side. Returns the hands' boot id. Set a time limit around it.
///
/// # Errors
/// See [`HelloError`].
pub async fn introduce<T>(io: &mut T, key: &Key, epoch: u64) -> Result<Uuid, HelloError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let server_nonce: [u8; 16] = random()?;
    let mut hello = Vec::with_capacity(40);
    hello.extend_from_slice(&SERVER_MAGIC);
    hello.extend_from_slice(&server_nonce);
    hello.extend_from_slice(&epoch.to_be_bytes());
    io.write_all(&hello).await?;
    io.flush().await?;

    let magic: [u8; 16] = take(io).await?;
    let echoed: [u8; 16] = take(io).await?;
    if magic != HANDS_MAGIC || echoed != server_nonce {
        return Err(HelloError::NotOurs);
    }
    let transcript = Transcript {
        server_nonce,
        hands_nonce: take(io).await?,
        boot_id: take(io).await?,
        epoch,
    };
    let [keyed] = take(io).await?;
    let proof = match keyed {
        0 => key.0,
        _ => transcript
            .mac(key, b"server", &[])
            .finalize()
            .into_bytes()
            .into(),
    };
    io.write_all(&proof).await?;
    io.flush().await?;

    let verdict: [u8; 9] = take(io).await?;
    let mac: [u8; 32] = take(io).await?;
    let [code, current @ ..] = verdict;
    if code == WRONG_KEY {
        return Err(HelloError::WrongKey);
    }
    transcript
        .mac(key, b"hands", &verdict)
        .verify_slice(&mac)
        .map_err(|_| HelloError::NotOurs)?;
    match code {
        ADMITTED => Ok(Uuid::from_bytes(transcript.boot_id)),
        STALE_EPOCH => Err(HelloError::StaleEpoch {
            epoch,
            current: u64::from_be_bytes(current),
        }),
        _ => Err(HelloError::NotOurs),
    }
}

/// What the hands remember from one admission to the next.
#[derive(Debug, Default)]
pub struct Admission {
    key: Option<Key>,
    epoch: u64,
}

/// The hands' side. `admit` is locked only between two awaits; `admitted` runs under that lock
/// when the verdict is favourable, so that ending older sessions and raising the epoch are one
/// step.
///
/// # Errors
/// See [`HelloError`]. A refusal has been sent to the server when this returns.
pub async fn examine<T>(
    io: &mut T,
    boot_id: Uuid,
    state: &std::sync::Mutex<Admission>,
    admitted: impl FnOnce(),
) -> Result<(), HelloError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let magic: [u8; 16] = take(io).await?;
    if magic != SERVER_MAGIC {
        return Err(HelloError::NotOurs);
    }
    let server_nonce: [u8; 16] = take(io).await?;
    let epoch = u64::from_be_bytes(take(io).await?);
    let transcript = Transcript {
        server_nonce,
        hands_nonce: random()?,
        boot_id: *boot_id.as_bytes(),
        epoch,
    };
    let keyed = lock(state).key.is_some();
    let mut challenge = Vec::with_capacity(65);
    challenge.extend_from_slice(&HANDS_MAGIC);
    challenge.extend_from_slice(&transcript.server_nonce);
    challenge.extend_from_slice(&transcript.hands_nonce);
    challenge.extend_from_slice(&transcript.boot_id);
    challenge.push(u8::from(keyed));
    io.write_all(&challenge).await?;
    io.flush().await?;

    let proof: [u8; 32] = take(io).await?;
    let (verdict, key) = {
        let mut state = lock(state);
        let proven = match (&state.key, keyed) {
            (Some(key), true) => transcript
                .mac(key, b"server", &[])
                .verify_slice(&proof)
                .is_ok(),
            // Two first admissions at once: the slower one has sent the key itself. Compared
            // through a MAC, so in constant time.
            (Some(key), false) => {
                let given = transcript
                    .mac(&Key(proof), b"same", &[])
                    .finalize()
                    .into_bytes();
                transcript
                    .mac(key, b"same", &[])
                    .verify_slice(&given)
                    .is_ok()
            }
            (None, _) => true,
        };
        if !proven {
            (Err(HelloError::WrongKey), None)
        } else {
            let key = state.key.get_or_insert(Key(proof)).clone();
            let current = state.epoch;
            if epoch < current {
                (Err(HelloError::StaleEpoch { epoch, current }), Some(key))
            } else {
                state.epoch = epoch;
                admitted();
                (Ok(()), Some(key))
            }
        }
    };
    let (code, current) = match &verdict {
        Ok(()) => (ADMITTED, epoch),
        Err(HelloError::StaleEpoch { current, .. }) => (STALE_EPOCH, *current),
        Err(_) => (WRONG_KEY, 0),
    };
    let mut reply = vec![code];
    reply.extend_from_slice(&current.to_be_bytes());
    let mac: [u8; 32] = key.map_or([0; 32], |key| {
        transcript
            .mac(&key, b"hands", &reply)
            .finalize()
            .into_bytes()
            .into()
    });
    reply.extend_from_slice(&mac);
    io.write_all(&reply).await?;
    io.flush().await?;
    verdict
}

fn lock(state: &std::sync::Mutex<Admission>) -> std::sync::MutexGuard<'_, Admission> {
    state
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn take<const N: usize>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::duplex;

    use super::*;

    async fn meet(
        state: &Mutex<Admission>,
        key: &Key,
        epoch: u64,
    ) -> (Result<Uuid, HelloError>, bool) {
        let (mut server, mut hands) = duplex(256);
        let mut admitted = false;
        let boot = Uuid::from_u128(7);
        let (introduced, _) = tokio::join!(
            introduce(&mut server, key, epoch),
            examine(&mut hands, boot, state, || admitted = true),
        );
        (introduced, admitted)
    }

    #[tokio::test]
    async fn the_first_admission_sets_the_key_and_the_epoch_never_falls() {
        let state = Mutex::new(Admission::default());
        let (first, other) = (Key([1; 32]), Key([2; 32]));
        let (result, admitted) = meet(&state, &first, 5).await;
        assert_eq!(result.ok(), Some(Uuid::from_u128(7)));
        assert!(admitted);

        let (result, admitted) = meet(&state, &other, 9).await;
        assert!(matches!(result, Err(HelloError::WrongKey)), "{result:?}");
        assert!(!admitted);

        let (result, admitted) = meet(&state, &first, 4).await;
        assert!(
            matches!(
                result,
                Err(HelloError::StaleEpoch {
                    epoch: 4,
                    current: 5
                })
            ),
            "{result:?}"
        );
        assert!(!admitted);

        let (result, admitted) = meet(&state, &first, 5).await;
        assert!(result.is_ok() && admitted, "{result:?}");
    }

    #[tokio::test]
    async fn garbage_is_not_answered() {
        let state = Mutex::new(Admission::default());
        let (mut stranger, mut hands) = duplex(256);
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n............")
            .await
            .unwrap();
        let result = examine(&mut hands, Uuid::nil(), &state, || ()).await;
        assert!(matches!(result, Err(HelloError::NotOurs)));
        drop(hands);
        let mut said = Vec::new();
        stranger.read_to_end(&mut said).await.unwrap();
        assert!(said.is_empty());
    }

    #[tokio::test]
    async fn impostor_hands_are_noticed() {
        let (mut server, mut impostor) = duplex(256);
        let key = Key([1; 32]);
        let boast = async {
            let _: [u8; 16] = take(&mut impostor).await?;
            let nonce: [u8; 16] = take(&mut impostor).await?;
            impostor.write_all(&HANDS_MAGIC).await?;
            impostor.write_all(&nonce).await?;
            impostor.write_all(&[9; 32]).await?;
            impostor.write_all(&[1]).await?;
            impostor.write_all(&[0; 41]).await
        };
        let (result, boasted) = tokio::join!(introduce(&mut server, &key, 1), boast);
        boasted.unwrap();
        assert!(matches!(result, Err(HelloError::NotOurs)), "{result:?}");
    }
}
