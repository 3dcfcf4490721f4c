//! A small map of what is costly to load, with a bound on its size and on the age of what it holds.
//!
//! Whoever asks for the same thing at once waits for one load. What could not be loaded is not kept.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;

/// A bounded cache; each of its values is loaded when it is asked for.
pub struct Cache<K, V> {
    entries: Mutex<HashMap<K, Entry<V>>>,
    entries_max: usize,
    age_max: Duration,
}

struct Entry<V> {
    since: Instant,
    value: Arc<OnceCell<V>>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty one.
    #[must_use]
    pub fn new(entries_max: usize, age_max: Duration) -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
            entries_max,
            age_max,
        }
    }

    /// The value, by `load` where there is none that is young enough.
    ///
    /// # Errors
    /// What `load` gives.
    pub async fn get<E>(
        &self,
        key: K,
        now: Instant,
        load: impl Future<Output = Result<V, E>>,
    ) -> Result<V, E> {
        let value = self.entry(key, now);
        value.get_or_try_init(|| load).await.cloned()
    }

    /// Loads the value anew when it is asked for next.
    pub fn forget(&self, key: &K) {
        self.entries().remove(key);
    }

    fn entry(&self, key: K, now: Instant) -> Arc<OnceCell<V>> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(&key)
            && now.duration_since(entry.since) < self.age_max
        {
            return Arc::clone(&entry.value);
        }
        if entries.len() >= self.entries_max {
            entries.retain(|_, entry| now.duration_since(entry.since) < self.age_max);
        }
        if entries.len() >= self.entries_max {
            // The older half goes, so that a full cache is not walked through at each new entry.
            let mut ages: Vec<Instant> = entries.values().map(|entry| entry.since).collect();
            let middle = ages.len() / 2;
            let (_, &mut limit, _) = ages.select_nth_unstable(middle);
            entries.retain(|_, entry| entry.since > limit);
        }
        let value = Arc::new(OnceCell::new());
        let entry = Entry {
            since: now,
            value: Arc::clone(&value),
        };
        entries.insert(key, entry);
        value
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry<V>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    const AGE_MAX: Duration = Duration::from_secs(60);

    async fn load(cache: &Cache<u32, u32>, key: u32, now: Instant, value: u32) -> u32 {
        let loaded = cache.get(key, now, async { Ok::<_, Infallible>(value) });
        loaded.await.unwrap()
    }

    #[tokio::test]
    async fn a_value_is_kept_until_it_is_too_old_or_forgotten() {
        let (cache, start) = (Cache::new(10, AGE_MAX), Instant::now());
        assert_eq!(load(&cache, 1, start, 10).await, 10);
        let just_before = start + AGE_MAX - Duration::from_secs(1);
        assert_eq!(load(&cache, 1, just_before, 11).await, 10);
        assert_eq!(load(&cache, 1, start + AGE_MAX, 12).await, 12);
        cache.forget(&1);
        assert_eq!(load(&cache, 1, start + AGE_MAX, 13).await, 13);
    }

    #[tokio::test]
    async fn a_full_cache_loses_its_oldest() {
        let (cache, start) = (Cache::new(4, AGE_MAX), Instant::now());
        for key in 0..20 {
            let now = start + Duration::from_secs(key.into());
            assert_eq!(load(&cache, key, now, key).await, key);
            assert!(cache.entries().len() <= 4);
        }
        let now = start + Duration::from_secs(20);
        assert_eq!(load(&cache, 19, now, 0).await, 19);
        assert_eq!(load(&cache, 0, now, 7).await, 7);
        // Even where all have the same age.
        for key in 100..120 {
            load(&cache, key, now, key).await;
            assert!(cache.entries().len() <= 4);
        }
    }

    #[tokio::test]
    async fn who_asks_at_once_waits_for_one_load() {
        let cache = Cache::new(10, AGE_MAX);
        let loads = AtomicU32::new(0);
        let ask = async || {
            let load = async {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(loads.fetch_add(1, Ordering::Relaxed))
            };
            cache.get(1, Instant::now(), load).await.unwrap()
        };
        assert_eq!(futures_util::join!(ask(), ask(), ask()), (0, 0, 0));
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_could_not_be_loaded_is_tried_again() {
        let (cache, now) = (Cache::<u32, u32>::new(10, AGE_MAX), Instant::now());
        assert_eq!(cache.get(1, now, async { Err("no") }).await, Err("no"));
        assert_eq!(load(&cache, 1, now, 5).await, 5);
    }
}
