//! Which requests belong to a session's repository, and so get its token.

use crate::door::Repository;

/// What git itself asks a host for, below a repository.
const SERVICES: [&str; 2] = ["git-upload-pack", "git-receive-pack"];

/// The repository that a request is for. Only what git and git-lfs ask for counts, spelled as they
/// spell it: a token must not follow a path that a server may read in another way.
pub(super) fn repository_of<'a>(
    repositories: &'a [Repository],
    host: &str,
    path: &str,
    query: Option<&str>,
) -> Option<&'a Repository> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let owner = segments.next()?;
    let name = segments.next()?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    let rest: Vec<_> = segments.collect();
    let is_git = match (rest.as_slice(), query) {
        (["info", "refs"], Some(query)) => query
            .strip_prefix("service=")
            .is_some_and(|service| SERVICES.contains(&service)),
        ([service], None) => SERVICES.contains(service),
        (["info", "lfs", below @ ..], _) => !below.is_empty() && below.iter().all(is_plain),
        _ => false,
    };
    if !is_git {
        return None;
    }
    repositories.iter().find(|repository| {
        repository.host == host && repository.owner == owner && repository.name == name
    })
}

/// No dots, no escapes, no parameters: nothing that could lead elsewhere.
fn is_plain(segment: &&str) -> bool {
    !segment.is_empty()
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repositories() -> Vec<Repository> {
        [
            ("github.com", "o", "r"),
            ("github.com", "o", "dot.ted"),
            ("git.example", "x", "r"),
        ]
        .map(|(host, owner, name)| Repository {
            host: host.to_owned(),
            owner: owner.to_owned(),
            name: name.to_owned(),
            token: None,
        })
        .to_vec()
    }

    #[test]
    fn what_git_asks_of_a_sessions_repository_gets_its_token() {
        let repositories = repositories();
        let found = |target: &str| {
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target, None),
            };
            repository_of(&repositories, "github.com", path, query).map(|found| &*found.name)
        };
        for (target, name) in [
            ("/o/r/info/refs?service=git-upload-pack", "r"),
            ("/o/r.git/info/refs?service=git-receive-pack", "r"),
            ("/o/r.git/git-upload-pack", "r"),
            ("/o/r/git-receive-pack", "r"),
            ("/o/dot.ted.git/git-receive-pack", "dot.ted"),
            ("/o/r.git/info/lfs/objects/batch", "r"),
            ("/o/r.git/info/lfs/locks?limit=100", "r"),
            ("/o/r.git/info/lfs/locks/12/unlock", "r"),
        ] {
            assert_eq!(found(target), Some(name), "{target}");
        }
        for target in [
            "/",
            "/o/r",
            "/o/r.git",
            "/o/r/settings",
            "/o/r/info/refs",
            "/o/r/info/refs?service=git-upload-archive",
            "/o/r/info/refs?service=git-upload-pack&x=1",
            "/o/r/git-upload-pack?x",
            "/o/r/git-upload-pack/",
            "/o/other/git-upload-pack",
            "/x/r/git-upload-pack",
            "/O/R/git-upload-pack",
            "//o/r/git-upload-pack",
            "/./o/r/git-upload-pack",
            "/a/../o/r/git-upload-pack",
            "/o/r/../other/git-upload-pack",
            "/o/r/../../user/git-upload-pack",
            "/o/r.git/info/lfs",
            "/o/r.git/info/lfs/",
            "/o/r.git/info/lfs/../../../../user",
            "/o/r.git/info/lfs/%2e%2e/x",
            "/o/r.git/info/lfs/a;b",
            "/o%2fr/git-upload-pack",
            "/o/r.git.git/git-upload-pack",
            "/o/r%2egit/git-upload-pack",
            "o/r/git-upload-pack",
        ] {
            assert_eq!(found(target), None, "{target}");
        }
        let elsewhere = repository_of(&repositories, "evil.example", "/o/r/git-upload-pack", None);
        assert!(elsewhere.is_none());
    }
}
