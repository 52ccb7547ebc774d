//! Whether anything has changed in the outputs directory, at a price that each call can pay.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::ControlFlow,
    os::fd::OwnedFd,
    path::Path,
    time::SystemTime,
};

use rustix::{
    fs::{Dir, Mode, OFlags, open},
    io::Errno,
};

use super::walk::{self, Bounds};

/// A few milliseconds.
const BOUNDS: Bounds = Bounds {
    entries: 10_000,
    depth: 32,
};

/// A number that changes with paths, sizes, times and inodes of the regular files below `outputs`; 0 when
/// there is none.
///
/// It looks at files, never into them. Where that is not enough to be sure (a file has only just
/// been changed, or there are more than it looks at), the number is a new one each time.
pub(super) async fn fingerprint(outputs: &Path) -> u64 {
    // Most of the time there is nothing, and a thread would cost more than the look.
    match is_empty(outputs) {
        Ok(false) => {}
        Ok(true) | Err(_) => return 0,
    }
    let outputs = outputs.to_owned();
    tokio::task::spawn_blocking(move || look(&outputs).unwrap_or(0))
        .await
        .unwrap_or(0)
}

fn open_outputs(outputs: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(outputs, flags, Mode::empty())
}

fn is_empty(outputs: &Path) -> Result<bool, Errno> {
    let mut directory = Dir::new(open_outputs(outputs)?)?;
    while let Some(entry) = directory.read() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn look(outputs: &Path) -> Result<u64, Errno> {
    let (mut sum, mut any, mut newest) = (0_u64, false, i128::MIN);
    let whole = walk::files(open_outputs(outputs)?, BOUNDS, |path, stat| {
        let modified = walk::modified(stat);
        let mut hash = DefaultHasher::new();
        (path, stat.st_size, modified, stat.st_ino).hash(&mut hash);
        // A sum, because directories are not read in any order.
        sum = sum.wrapping_add(hash.finish());
        any = true;
        newest = newest.max(modified);
        ControlFlow::Continue(())
    })?;
    if !whole || (any && walk::unsettled(newest).is_some()) {
        let mut hash = DefaultHasher::new();
        SystemTime::now().hash(&mut hash);
        sum = sum.wrapping_add(hash.finish());
        any = true;
    }
    Ok(if any { sum.max(1) } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        time::{Duration, Instant},
    };

    use super::*;

    async fn settled(outputs: &Path) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (one, two) = (fingerprint(outputs).await, fingerprint(outputs).await);
            if one == two {
                return one;
            }
            assert!(Instant::now() < deadline, "it never settles");
        }
    }

    #[tokio::test]
    async fn it_changes_with_every_file_and_with_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let outputs = directory.path().join("outputs");
        assert_eq!(fingerprint(&outputs).await, 0);
        fs::create_dir(&outputs).unwrap();
        assert_eq!(fingerprint(&outputs).await, 0);
        fs::create_dir_all(outputs.join("a/b")).unwrap();
        symlink("/etc/passwd", outputs.join("link")).unwrap();
        assert_eq!(settled(&outputs).await, 0);
        let mut seen = vec![0];
        let mut next = async |what: &str| {
            let now = settled(&outputs).await;
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        fs::write(outputs.join("a/b/file"), "").unwrap();
        next("an empty file").await;
        fs::write(outputs.join("a/b/file"), "1").unwrap();
        next("its content").await;
        fs::write(outputs.join("a/b/file"), "2").unwrap();
        next("other content of the same size").await;
        fs::rename(outputs.join("a/b/file"), outputs.join("a/file")).unwrap();
        next("its name").await;
        fs::write(outputs.join("second"), "2").unwrap();
        next("another file").await;
        fs::remove_dir_all(&outputs).unwrap();
        assert_eq!(settled(&outputs).await, 0);
        symlink("/etc", &outputs).unwrap();
        assert_eq!(fingerprint(&outputs).await, 0);
    }

    #[tokio::test]
    async fn two_changes_at_once_are_two() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        for round in 0..200_u32 {
            fs::write(&file, format!("{:08}", round)).unwrap();
            let before = fingerprint(directory.path()).await;
            fs::write(&file, format!("{:08}", round + 1_000_000)).unwrap();
            assert_ne!(fingerprint(directory.path()).await, before);
        }
    }

    #[tokio::test]
    async fn more_than_it_looks_at_is_always_new() {
        let directory = tempfile::tempdir().unwrap();
        let mut deep = directory.path().to_owned();
        for _ in 0..BOUNDS.depth {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let one = fingerprint(directory.path()).await;
        assert_ne!(one, 0);
        assert_ne!(fingerprint(directory.path()).await, one);
    }
}
