//! Which fake address stands for which name.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most names known at once. Asking for more makes the one that was used longest ago unknown.
const MAX_NAMES: usize = 16 << 10;

/// Names and their addresses; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Names {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
struct Table {
    first: u32,
    last: u32,
    most: usize,
    addresses: HashMap<Arc<str>, u32>,
    names: HashMap<u32, Entry>,
    /// Addresses by when they were last used.
    ages: BTreeMap<u64, u32>,
    clock: u64,
    next: u32,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    age: u64,
    /// Connections that have been opened by this address and are not over.
    uses: usize,
}

/// A name whose address stays its own while this lives.
#[derive(Debug)]
pub(super) struct Held {
    names: Names,
    address: u32,
    name: Arc<str>,
}

impl Held {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.names.lock().names.get_mut(&self.address) {
            entry.uses -= 1;
        }
    }
}

impl Names {
    /// Names for the addresses from `first` to `last`, which are many more than are known at once:
    /// an address that was given up comes back late, when no program remembers it.
    pub(super) fn new(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        Self::with_most(first, last, MAX_NAMES)
    }

    fn with_most(first: Ipv4Addr, last: Ipv4Addr, most: usize) -> Self {
        let (first, last) = (first.to_bits(), last.to_bits());
        Self {
            table: Arc::new(Mutex::new(Table {
                first,
                last,
                most,
                addresses: HashMap::new(),
                names: HashMap::new(),
                ages: BTreeMap::new(),
                clock: 0,
                next: first,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of `name`, a new one if it has none. `None` when all are in use.
    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let mut table = self.lock();
        let address = match table.addresses.get(name) {
            Some(address) => *address,
            None => table.insert(name)?,
        };
        table.touch(address);
        Some(Ipv4Addr::from_bits(address))
    }

    /// The name of `address`, if it stands for one.
    pub(super) fn name(&self, address: Ipv4Addr) -> Option<Arc<str>> {
        let table = self.lock();
        Some(Arc::clone(&table.names.get(&address.to_bits())?.name))
    }

    /// The same, for a connection to it.
    pub(super) fn hold(&self, address: Ipv4Addr) -> Option<Held> {
        let address = address.to_bits();
        let mut table = self.lock();
        let entry = table.names.get_mut(&address)?;
        entry.uses += 1;
        let name = Arc::clone(&entry.name);
        table.touch(address);
        Some(Held {
            names: self.clone(),
            address,
            name,
        })
    }

    /// Whether such an address can stand for a name, now or later.
    pub(super) fn covers(&self, address: Ipv4Addr) -> bool {
        let table = self.lock();
        (table.first..=table.last).contains(&address.to_bits())
    }
}

impl Table {
    fn insert(&mut self, name: &str) -> Option<u32> {
        while self.names.len() >= self.most {
            let oldest = self
                .ages
                .values()
                .find(|address| self.names.get(address).is_some_and(|entry| entry.uses == 0));
            let oldest = *oldest?;
            if let Some(entry) = self.names.remove(&oldest) {
                self.ages.remove(&entry.age);
                self.addresses.remove(&entry.name);
            }
        }
        let address = self.free()?;
        let name: Arc<str> = name.into();
        self.addresses.insert(Arc::clone(&name), address);
        let entry = Entry {
            name,
            age: 0,
            uses: 0,
        };
        self.names.insert(address, entry);
        Some(address)
    }

    fn free(&mut self) -> Option<u32> {
        // Beyond the names that are known there is a free one, except in a tiny range.
        for _ in self.first..=self.last {
            let address = self.next;
            self.next = if address == self.last {
                self.first
            } else {
                address + 1
            };
            // Some programs take the others for a network's own or its broadcast address.
            if (1..=254).contains(&(address & 0xff)) && !self.names.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    fn touch(&mut self, address: u32) {
        self.clock += 1;
        if let Some(entry) = self.names.get_mut(&address) {
            self.ages.remove(&entry.age);
            entry.age = self.clock;
            self.ages.insert(self.clock, address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(most: usize) -> Names {
        Names::with_most(
            Ipv4Addr::new(198, 18, 1, 0),
            Ipv4Addr::new(198, 18, 1, 255),
            most,
        )
    }

    #[test]
    fn a_name_keeps_its_address_and_an_address_its_name() {
        let names = names(100);
        let a = names.address("a.example").unwrap();
        let b = names.address("b.example").unwrap();
        assert_eq!(a, Ipv4Addr::new(198, 18, 1, 1));
        assert_ne!(a, b);
        assert_eq!(names.address("a.example"), Some(a));
        assert_eq!(names.name(b).as_deref(), Some("b.example"));
        assert_eq!(names.name(Ipv4Addr::new(198, 18, 1, 77)), None);
        assert!(names.hold(Ipv4Addr::new(198, 18, 1, 77)).is_none());
        assert!(names.covers(b) && !names.covers(Ipv4Addr::new(198, 18, 2, 0)));
    }

    #[test]
    fn the_one_used_longest_ago_goes_and_its_address_comes_back_last() {
        let names = names(3);
        let [a, b, _] = ["a", "b", "c"].map(|name| names.address(name).unwrap());
        names.address("a").unwrap();
        let d = names.address("d").unwrap();
        assert_eq!(names.name(b), None);
        assert_eq!(names.name(a).as_deref(), Some("a"));
        assert!(d > b);
        let again = names.address("b").unwrap();
        assert!(again > d, "the address of another name in between");
    }

    #[test]
    fn an_address_in_use_is_never_given_to_another_name() {
        let names = names(2);
        let a = names.address("a").unwrap();
        let (first, second) = (names.hold(a).unwrap(), names.hold(a).unwrap());
        for round in 0..1000 {
            let other = names.address(&format!("n{round}")).unwrap();
            assert_ne!(other, a);
        }
        assert_eq!(names.name(a).as_deref(), Some("a"));
        drop(first);
        let b = names.hold(names.address("b").unwrap()).unwrap();
        assert_eq!(names.address("c"), None, "both are in use");
        drop(second);
        assert!(names.address("c").is_some());
        assert_eq!(names.name(a), None);
        assert_eq!(b.name(), "b");
    }
}
