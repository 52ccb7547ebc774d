//! Authorities that the operator adds to those that programs inside trust.
//!
//! They are wanted in three places: in the bundles of the image, which most programs read; beside
//! them, where the image's own tools look when they make the bundles anew; and in one file of all,
//! that the environment names to programs which bring authorities of their own.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::fs::OFlags;

/// Everything that is trusted inside, when the operator adds to it.
const BUNDLE: &str = "run/selfsame/ca-bundle.pem";
/// Longest bundle of an image that is added to.
const MAX_BUNDLE: u64 = 8 << 20;
/// Where images keep theirs: Debian and Alpine, Red Hat, SUSE, and what others link to.
const SYSTEM: [&str; 6] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/pki/tls/certs/ca-bundle.crt",
    "var/lib/ca-certificates/ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];
/// What an image's own tools add when they make its bundle anew: Debian and Alpine, Red Hat, SUSE.
const SOURCES: [&str; 3] = [
    "usr/local/share/ca-certificates",
    "etc/pki/ca-trust/source/anchors",
    "etc/pki/trust/anchors",
];
const SOURCE_PREFIX: &str = "selfsame-";
const FIRST_LINE: &str = "-----BEGIN CERTIFICATE-----";
const LAST_LINE: &str = "-----END CERTIFICATE-----";
const BEGIN: &str = "# Added by Selfsame: begin\n";
const END: &str = "# Added by Selfsame: end\n";
/// Variables by which programs are told of a bundle.
/// Not git's: it would overrule what git's configuration says about single hosts, and git reads the
/// system's bundle anyway.
const VARIABLES: [&str; 9] = [
    // OpenSSL, Python's ssl, Ruby, Go, uv
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NPM_CONFIG_CAFILE",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HEX_CACERTS_PATH",
];
/// Those that add to what the program brings.
const ADDING_VARIABLES: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// The file system that programs inside see.
#[derive(Debug)]
pub(super) struct Trust {
    root: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Trust {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            changing: Mutex::default(),
        }
    }

    /// Makes programs inside trust the certificates in `pem` besides the image's own, in place of
    /// those that were added before. An image without any bundle gets one.
    ///
    /// # Errors
    /// There are certificates, and no bundle could be written.
    pub(super) fn set(&self, pem: &str) -> io::Result<()> {
        let added = certificates(pem)?;
        let _changing = self.changing.lock();
        // Several names may be one file.
        let mut bundles: Vec<PathBuf> = SYSTEM
            .iter()
            .filter_map(|name| fs::canonicalize(self.root.join(name)).ok())
            .collect();
        bundles.sort();
        bundles.dedup();
        let earlier = self.earlier();
        let mut system = String::new();
        for path in &bundles {
            let Ok(bundle) = read(path) else { continue };
            let own = without_added(&bundle, &earlier);
            if own.len() > system.len() {
                system.clone_from(&own);
            }
            // One that cannot be written is not the only one.
            let _ = replace(path, &with_added(&own, &added));
        }
        if bundles.is_empty() && !added.is_empty() {
            let path = self.root.join(SYSTEM[0]);
            create_parent(&path)?;
            replace(&path, &with_added("", &added))?;
        }
        self.sources(&added);
        let bundle = self.root.join(BUNDLE);
        if added.is_empty() {
            return match fs::remove_file(&bundle) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        create_parent(&bundle)?;
        replace(&bundle, &with_added(&system, &added))
    }

    /// What the tools were given earlier. They have put it into the bundles in their own way.
    fn earlier(&self) -> Vec<String> {
        let directories = SOURCES.iter().map(|directory| self.root.join(directory));
        directories
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| is_source(&entry.file_name()))
            .filter_map(|entry| read(&entry.path()).ok())
            .filter(|content| content.starts_with(FIRST_LINE))
            .collect()
    }

    /// One file per certificate, as the tools want it. They are a convenience: an image that the
    /// files cannot be written to has the bundles.
    fn sources(&self, added: &[String]) {
        for (place, directory) in SOURCES.iter().enumerate() {
            let directory = self.root.join(directory);
            // The first one is made where it is missing: Debian's package reads it when it is
            // installed later.
            if place == 0 && !added.is_empty() {
                let _ = fs::create_dir_all(&directory);
            }
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if name
                    .as_encoded_bytes()
                    .starts_with(SOURCE_PREFIX.as_bytes())
                {
                    let _ = fs::remove_file(entry.path());
                }
            }
            for (number, certificate) in added.iter().enumerate() {
                let path = directory.join(format!("{SOURCE_PREFIX}{number}.crt"));
                let _ = replace(&path, certificate);
            }
        }
    }

    /// What programs are told. Nothing when nothing was added; and when the image has no bundle of
    /// its own, nothing that would make a program forget those that it brings.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let bundle = self.root.join(BUNDLE);
        let replacing: &[&str] = match read(&bundle) {
            Err(_) => return Vec::new(),
            Ok(content) if content.starts_with(BEGIN) => &[],
            Ok(_) => &VARIABLES,
        };
        replacing
            .iter()
            .chain(&ADDING_VARIABLES)
            .map(|name| (*name, bundle.clone().into_os_string()))
            .collect()
    }
}

fn is_source(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(SOURCE_PREFIX.as_bytes())
}

/// The certificates in `pem`, each with a line end behind it. Comments between them are left out.
fn certificates(pem: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(start) = rest.find(FIRST_LINE) {
        let from = &rest[start..];
        let Some(end) = from.find(LAST_LINE) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a certificate has no end",
            ));
        };
        let end = end + LAST_LINE.len();
        found.push(format!("{}\n", from[..end].replace("\r\n", "\n")));
        rest = &from[end..];
    }
    if found.is_empty() && !pem.trim().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is no certificate in it",
        ));
    }
    Ok(found)
}

fn with_added(own: &str, added: &[String]) -> String {
    if added.is_empty() {
        return own.to_owned();
    }
    let separator = if own.is_empty() || own.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{own}{separator}{BEGIN}{}{END}", added.concat())
}

fn without_added(bundle: &str, earlier: &[String]) -> String {
    let mut own = match (bundle.find(BEGIN), bundle.rfind(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{}", &bundle[..begin], &bundle[end + END.len()..])
        }
        _ => bundle.to_owned(),
    };
    for certificate in earlier {
        own = own.replace(certificate, "");
    }
    own
}

/// Reads a regular file that is not too long. Nothing else can make the hands wait.
fn read(path: &Path) -> io::Result<String> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    file.take(MAX_BUNDLE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BUNDLE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Bundles have comments, and some of them are not UTF-8.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Writes a file in one step, so that nobody reads half of it. One that has it already is left.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    if read(path).is_ok_and(|now| now == content) {
        return Ok(());
    }
    let new = path.with_extension("selfsame-new");
    let _ = fs::remove_file(&new);
    let write = || -> io::Result<()> {
        let mut file = File::create_new(&new)?;
        file.write_all(content.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&new, path)
    };
    let result = write();
    if result.is_err() {
        let _ = fs::remove_file(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\ndHdv\n-----END CERTIFICATE-----\n";
    const OWN: &str = "# own\n-----BEGIN CERTIFICATE-----\nb3du\n-----END CERTIFICATE-----";

    fn image(system: Option<&str>) -> (tempfile::TempDir, Trust) {
        let root = tempfile::tempdir().unwrap();
        if let Some(name) = system {
            let path = root.path().join(name);
            create_parent(&path).unwrap();
            fs::write(path, OWN).unwrap();
        }
        let trust = Trust::new(root.path());
        (root, trust)
    }

    #[test]
    fn what_is_added_is_added_once_and_can_be_taken_back() {
        for name in SYSTEM {
            let (root, trust) = image(Some(name));
            let system = || fs::read_to_string(root.path().join(name)).unwrap();
            let bundle = || fs::read_to_string(root.path().join(BUNDLE)).unwrap();
            for _ in 0..3 {
                trust.set(&format!("junk\r\n{ONE}junk{TWO}")).unwrap();
                assert_eq!(system(), format!("{OWN}\n{BEGIN}{ONE}{TWO}{END}"));
                assert_eq!(bundle(), system());
            }
            let variables = trust.environment();
            assert_eq!(variables.len(), VARIABLES.len() + ADDING_VARIABLES.len());
            assert!(variables.iter().all(|(_, value)| Path::new(value).exists()));
            trust.set(TWO).unwrap();
            assert_eq!(system(), format!("{OWN}\n{BEGIN}{TWO}{END}"));
            assert_eq!(bundle(), system());
            trust.set("").unwrap();
            assert_eq!(system().trim_end(), OWN);
            assert_eq!(trust.environment(), []);
        }
    }

    #[test]
    fn the_tools_of_the_image_find_each_certificate() {
        let (root, trust) = image(Some(SYSTEM[0]));
        let anchors = root.path().join(SOURCES[1]);
        fs::create_dir_all(&anchors).unwrap();
        fs::write(anchors.join("users.crt"), ONE).unwrap();
        trust.set(&format!("{ONE}{TWO}")).unwrap();
        trust.set(TWO).unwrap();
        let debian = root.path().join(SOURCES[0]);
        assert_eq!(
            fs::read_to_string(debian.join("selfsame-0.crt")).unwrap(),
            TWO
        );
        assert_eq!(fs::read_dir(debian).unwrap().count(), 1);
        assert_eq!(fs::read_dir(anchors).unwrap().count(), 2);
        assert!(!root.path().join(SOURCES[2]).exists());
    }

    #[test]
    fn an_image_without_a_bundle_gets_one_only_when_there_is_something_in_it() {
        let (root, trust) = image(None);
        trust.set("").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert_eq!(trust.environment(), []);
        trust.set(ONE).unwrap();
        let expected = format!("{BEGIN}{ONE}{END}");
        for name in [SYSTEM[0], BUNDLE] {
            assert_eq!(
                fs::read_to_string(root.path().join(name)).unwrap(),
                expected
            );
        }
        assert_eq!(trust.environment().len(), ADDING_VARIABLES.len());
    }

    #[test]
    fn names_of_one_file_are_written_once_and_stay_links() {
        let (root, trust) = image(Some(SYSTEM[1]));
        for name in [SYSTEM[2], SYSTEM[5]] {
            let path = root.path().join(name);
            create_parent(&path).unwrap();
            std::os::unix::fs::symlink(root.path().join(SYSTEM[1]), path).unwrap();
        }
        trust.set(ONE).unwrap();
        let expected = format!("{OWN}\n{BEGIN}{ONE}{END}");
        for name in [SYSTEM[1], SYSTEM[2], SYSTEM[5]] {
            let path = root.path().join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            assert_eq!(path.is_symlink(), name != SYSTEM[1]);
        }
    }

    #[test]
    fn odd_files_and_odd_input_harm_nothing() {
        let (root, trust) = image(None);
        let path = root.path().join(SYSTEM[0]);
        fs::create_dir_all(&path).unwrap();
        let fifo = root.path().join(SYSTEM[4]);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        trust.set(ONE).unwrap();
        assert!(root.path().join(BUNDLE).exists());
        for bad in ["no certificate", "-----BEGIN CERTIFICATE-----\nx"] {
            let error = trust.set(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(root.path().join(BUNDLE).exists());
    }
}
