//! Contents as requests hold them, so that a long session does not read them again for each.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use selfsame_types::BlobId;

/// Most bytes kept by this server, over all sessions.
const MAX_BYTES: usize = 64 << 20;

/// The JSON of blocks' `source`, by content. What was used longest ago goes first.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    sources: HashMap<BlobId, Arc<str>>,
    /// In the order of their last use.
    order: VecDeque<BlobId>,
    bytes: usize,
}

impl Cache {
    pub(super) fn get(&self, blob: BlobId) -> Option<Arc<str>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = kept.sources.get(&blob).cloned()?;
        kept.order.retain(|other| *other != blob);
        kept.order.push_back(blob);
        Some(source)
    }

    pub(super) fn put(&self, blob: BlobId, source: Arc<str>) {
        if source.len() > MAX_BYTES {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += source.len();
        if let Some(before) = kept.sources.insert(blob, source) {
            kept.bytes -= before.len();
            kept.order.retain(|other| *other != blob);
        }
        kept.order.push_back(blob);
        while kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            if let Some(gone) = kept.sources.remove(&oldest) {
                kept.bytes -= gone.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_goes_first() {
        let cache = Cache::default();
        let part = |c: &str| Arc::<str>::from(c.repeat(MAX_BYTES / 3));
        let [a, b, c, d] = [(); 4].map(|()| BlobId::new());
        for (blob, text) in [(a, "a"), (b, "b"), (c, "c")] {
            cache.put(blob, part(text));
        }
        assert!(cache.get(a).is_some());
        cache.put(d, part("d"));
        assert!(cache.get(b).is_none());
        assert!(cache.get(a).is_some_and(|text| text.starts_with('a')));
        // The same one again takes no more room.
        for _ in 0..10 {
            cache.put(d, part("d"));
        }
        assert!([a, c, d].iter().all(|blob| cache.get(*blob).is_some()));
        cache.put(b, "x".repeat(MAX_BYTES + 1).into());
        assert!(cache.get(b).is_none() && cache.get(a).is_some());
        let kept = cache.0.lock().unwrap();
        assert_eq!(kept.bytes, MAX_BYTES / 3 * 3);
        assert_eq!(kept.order.len(), 3);
    }
}
