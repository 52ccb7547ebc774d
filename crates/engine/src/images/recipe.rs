//! From a list of packages to the commands that install them.
//!
//! Names of packages are hostile text. They are arguments of their own, after `--` where the program
//! knows it, and never part of a script's text; what could be an option or several words was refused
//! when the environment was saved, and is refused again here.

use std::collections::HashSet;

use selfsame_types::environment::Packages;
use sha2::{Digest as _, Sha256};

/// Part of every hash: another number when the same list would be installed differently.
const RECIPE: &str = "1";
/// Where programs keep what is of no use after the installation.
pub(super) const SCRATCH: &str = "/var/tmp/selfsame-install";

/// Debian's package manager, with what a slow mirror needs.
const APT: &str = r#"
apt-get -o Acquire::Retries=3 install -y --no-install-recommends -- "$@"
"#;
const APT_UPDATE: &str = "apt-get -o Acquire::Retries=3 update";

/// What the installation commands find in their environment. Programs go to directories that are on
/// every PATH.
pub(super) fn environment() -> Vec<(String, String)> {
    let scratch = |name: &str| format!("{SCRATCH}/{name}");
    [
        ("HOME", "/root".to_owned()),
        ("DEBIAN_FRONTEND", "noninteractive".to_owned()),
        ("CARGO_HOME", scratch("cargo")),
        ("GOBIN", "/usr/local/bin".to_owned()),
        ("GOPATH", scratch("go")),
        ("GOCACHE", scratch("go-cache")),
        // Else not even root's `rm -rf` would be allowed to clean up.
        ("GOFLAGS", "-modcacherw".to_owned()),
        ("npm_config_cache", scratch("npm")),
        ("PIP_NO_CACHE_DIR", "1".to_owned()),
        ("PIP_BREAK_SYSTEM_PACKAGES", "1".to_owned()),
        ("PIP_ROOT_USER_ACTION", "ignore".to_owned()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// A package manager other than apt.
struct Manager {
    name: &'static str,
    /// Whether there is one is whether this program is there ..
    program: &'static str,
    /// .. and these Debian packages bring it, with what its packages need to build.
    debian: &'static [&'static str],
    /// Installs `"$@"`, for every user of the sandbox.
    script: &'static str,
}

/// In the order of installation; apt comes before.
const MANAGERS: &[Manager] = &[
    Manager {
        name: "cargo",
        program: "cargo",
        debian: &["cargo"],
        script: r#"cargo install --locked --root /usr/local -- "$@""#,
    },
    Manager {
        name: "gem",
        program: "gem",
        debian: &["ruby", "ruby-dev", "gcc", "libc6-dev", "make"],
        // Its `--` means something else: what follows goes to compilers.
        script: r#"gem install --no-document "$@""#,
    },
    Manager {
        name: "go",
        program: "go",
        debian: &["golang-go", "git", "ca-certificates"],
        // One at a time: packages of several modules are refused together. Outside of a module a
        // version is required.
        script: r#"
            for package in "$@"; do
                case $package in *@*) ;; *) package=$package@latest ;; esac
                go install -- "$package"
            done
        "#,
    },
    Manager {
        name: "npm",
        program: "npm",
        debian: &["npm"],
        // Scripts find in /node_modules, wherever they are, what is installed globally.
        script: r#"
            npm install --global --no-audit --no-fund --loglevel=error -- "$@"
            [ -e /node_modules ] || ln -s "$(npm root --global)" /node_modules
        "#,
    },
    Manager {
        name: "pip",
        program: "pip3",
        debian: &["python3-pip"],
        script: r#"pip3 install -- "$@""#,
    },
];

/// One command of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// For people: `pip`, `apt (for npm)`.
    pub name: String,
    pub packages: usize,
    pub argv: Vec<String>,
}

/// A list that could not have been saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a package")]
pub(super) struct BadName(String);

/// What is installed into one image, and what it is called.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    lists: Vec<(&'static str, Vec<String>)>,
}

impl Recipe {
    pub(super) fn new(packages: &Packages) -> Result<Self, BadName> {
        let mut lists = Vec::new();
        for (manager, names) in packages.by_manager() {
            let mut seen = HashSet::new();
            let names: Vec<String> = names.iter().filter(|n| seen.insert(*n)).cloned().collect();
            if let Some(bad) = names.iter().find(|name| !is_one_argument(name)) {
                return Err(BadName(bad.escape_default().take(100).collect()));
            }
            if !names.is_empty() {
                lists.push((manager, names));
            }
        }
        Ok(Self { lists })
    }

    /// The same for the same packages on the same base, and for nothing else.
    pub(super) fn hash(&self, scope: &str, base: &str) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        for text in [RECIPE, scope, base] {
            field(text);
        }
        for (manager, names) in &self.lists {
            field(manager);
            field(&names.len().to_string());
            for name in names {
                field(name);
            }
        }
        hash.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// How many packages there are of all managers.
    pub(super) fn count(&self) -> usize {
        self.lists.iter().map(|(_, names)| names.len()).sum()
    }

    fn names(&self, manager: &str) -> &[String] {
        let list = self.lists.iter().find(|(name, _)| *name == manager);
        list.map_or(&[], |(_, names)| names)
    }

    /// The first thing to do, if anything of apt's is asked for.
    pub(super) fn apt(&self) -> Option<Step> {
        let names = self.names("apt");
        (!names.is_empty()).then(|| step("apt", &format!("{APT_UPDATE}\n{APT}"), names))
    }

    /// Prints the programs of the managers that are wanted and not there.
    pub(super) fn probe(&self) -> Option<Vec<String>> {
        let programs: Vec<String> = self.managers().map(|m| m.program.to_owned()).collect();
        let script = r#"for p in "$@"; do command -v "$p" >/dev/null || echo "$p"; done"#;
        (!programs.is_empty()).then(|| shell(script, &programs))
    }

    /// Installs managers whose programs [`Recipe::probe`] printed.
    pub(super) fn missing(&self, printed: &str) -> Option<Step> {
        let missing: Vec<&Manager> = self
            .managers()
            .filter(|manager| printed.lines().any(|line| line.trim() == manager.program))
            .collect();
        let names: Vec<&str> = missing.iter().map(|manager| manager.name).collect();
        let debian: Vec<String> = missing
            .iter()
            .flat_map(|manager| manager.debian)
            .map(|name| (*name).to_owned())
            .collect();
        let script = format!(
            r#"
            if ! command -v apt-get >/dev/null; then
                echo "the image has no {0}, and no apt-get to install that with" >&2
                exit 1
            fi
            {APT_UPDATE}
            {APT}
            "#,
            names.join(", "),
        );
        (!debian.is_empty()).then(|| Step {
            name: format!("apt (for {})", names.join(", ")),
            ..step("apt", &script, &debian)
        })
    }

    /// The rest, in order.
    pub(super) fn others(&self) -> impl Iterator<Item = Step> {
        self.managers()
            .map(|manager| step(manager.name, manager.script, self.names(manager.name)))
    }

    fn managers(&self) -> impl Iterator<Item = &'static Manager> {
        MANAGERS
            .iter()
            .filter(|manager| !self.names(manager.name).is_empty())
    }
}

/// Removes what only the installation needed.
pub(super) fn clean_up() -> Vec<String> {
    shell(
        "rm -rf -- \"$1\"\n\
         if command -v apt-get >/dev/null; then apt-get clean; rm -rf /var/lib/apt/lists/*; fi",
        &[SCRATCH.to_owned()],
    )
}

/// Commands that stop at the first failure. `"$@"` are the arguments.
fn shell(script: &str, arguments: &[String]) -> Vec<String> {
    let mut argv = vec!["/bin/bash", "-euc", script, "install"];
    argv.extend(arguments.iter().map(String::as_str));
    argv.into_iter().map(str::to_owned).collect()
}

fn step(name: &str, script: &str, packages: &[String]) -> Step {
    Step {
        name: name.to_owned(),
        packages: packages.len(),
        argv: shell(script, packages),
    }
}

fn is_one_argument(name: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= 1024 && !name.starts_with('-') && !name.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(json: serde_json::Value) -> Recipe {
        let mut all = serde_json::json!({"type": "packages", "apt": [], "cargo": [], "gem": [],
            "go": [], "npm": [], "pip": []});
        for (manager, names) in json.as_object().unwrap() {
            all[manager] = names.clone();
        }
        Recipe::new(&serde_json::from_value(all).unwrap()).unwrap()
    }

    #[test]
    fn order_versions_and_arguments() {
        let recipe = recipe(serde_json::json!({
            "pip": ["sqlalchemy==2.0.30", "requests", "requests"],
            "npm": ["express@4.18.0"],
            "apt": ["ffmpeg"],
            "go": ["golang.org/x/tools/cmd/goimports@latest"],
            "gem": ["rails:7.1.0"],
            "cargo": ["hyperfine@1.18.0"],
        }));
        let apt = recipe.apt().unwrap();
        assert_eq!(apt.argv.last().unwrap(), "ffmpeg");
        assert_eq!((recipe.count(), apt.packages), (7, 1));
        let others: Vec<Step> = recipe.others().collect();
        let names: Vec<&str> = others.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["cargo", "gem", "go", "npm", "pip"]);
        let pip = &others[4].argv;
        assert_eq!(pip[..2], ["/bin/bash", "-euc"]);
        assert_eq!(pip[4..], ["sqlalchemy==2.0.30", "requests"]);
        // No name is ever part of a script.
        for step in others.iter().chain([&apt]) {
            assert!(!step.argv[2].contains("rails") && !step.argv[2].contains("ffmpeg"));
        }
    }

    #[test]
    fn a_missing_manager_is_installed_first() {
        let recipe = recipe(serde_json::json!({"gem": ["a"], "pip": ["b"], "go": ["c"]}));
        assert!(recipe.apt().is_none());
        let probe = recipe.probe().unwrap();
        assert_eq!(probe[4..], ["gem", "go", "pip3"]);
        assert!(recipe.missing("").is_none());
        let step = recipe.missing("gem\ngo\n").unwrap();
        assert_eq!(step.name, "apt (for gem, go)");
        let debian = &step.argv[4..];
        assert!(debian.contains(&"ruby".to_owned()) && debian.contains(&"golang-go".to_owned()));
        assert!(!debian.contains(&"python3-pip".to_owned()));
        // What a hostile image prints chooses among our own words only.
        assert!(recipe.missing("--force\ncargo\nrm -rf /\n").is_none());
        assert!(recipe.missing("cargo").is_none(), "not asked for");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "-rf",
            "--index-url=http://x",
            "a b",
            "a\nb",
            "",
            "a\u{7f}",
            "a\u{a0}b",
        ] {
            let packages = Packages {
                pip: vec![bad.to_owned()],
                ..Packages::default()
            };
            assert!(Recipe::new(&packages).is_err(), "{bad:?}");
        }
        // Odd, and harmless as one argument.
        let odd = [
            "$(reboot)",
            "a;b",
            "`x`",
            "@scope/name@^1",
            "a[b]>=1,<2",
            "git+https://x/y",
        ];
        let packages = Packages {
            npm: odd.map(str::to_owned).to_vec(),
            ..Packages::default()
        };
        let npm = Recipe::new(&packages).unwrap().others().next().unwrap();
        assert_eq!(npm.argv[4..], odd);
    }

    #[test]
    fn the_hash_is_of_everything_that_matters() {
        let pip = |names: &[&str]| recipe(serde_json::json!({"pip": names}));
        let hash = pip(&["a", "b"]).hash("w", "sha256:1");
        assert_eq!(hash, pip(&["a", "b", "a"]).hash("w", "sha256:1"));
        assert_eq!(hash.len(), 32);
        for other in [
            pip(&["a", "b"]).hash("w", "sha256:2"),
            pip(&["a", "b"]).hash("v", "sha256:1"),
            pip(&["ab"]).hash("w", "sha256:1"),
            pip(&["b", "a"]).hash("w", "sha256:1"),
            recipe(serde_json::json!({"npm": ["a", "b"]})).hash("w", "sha256:1"),
            recipe(serde_json::json!({"npm": ["a"], "pip": ["b"]})).hash("w", "sha256:1"),
        ] {
            assert_ne!(hash, other);
        }
    }
}
