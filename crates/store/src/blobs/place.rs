//! Where objects are: a directory of this machine, or a bucket.
//!
//! Every object is below the deployment's id: two deployments may share a bucket or a directory, and the
//! sweep of one never takes the other's objects for strays.

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    client::{HttpClient, HttpConnector},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
};
use secrecy::{ExposeSecret as _, SecretString};
use selfsame_net::reqwest;
use selfsame_types::{BlobId, Timestamp};
use uuid::Uuid;

use super::Blobs;

/// S3 takes parts of at least 5 MiB, except the last.
const S3_PART: usize = 8 * 1024 * 1024;
const LOCAL_PART: usize = 1024 * 1024;
/// A file of a broken upload that nothing was written to for so long belongs to nobody.
const STALE: Duration = Duration::from_hours(24);

pub(super) struct Place {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// The deployment's own part of it.
    root: Path,
    /// Size of the parts that a large object is written in, bytes.
    pub(super) part: usize,
    pub(super) parallel: usize,
    /// The directory, if it is one.
    directory: Option<PathBuf>,
}

/// A bucket, and how to get at it.
#[derive(Debug, Clone)]
pub struct S3 {
    /// As `https://host:port`; the region's own when absent.
    pub endpoint: Option<String>,
    pub bucket: String,
    pub region: String,
    /// Key id and secret. Without them the machine's own role is asked for.
    pub keys: Option<(String, SecretString)>,
    /// `host/bucket/key` instead of `bucket.host/key`.
    pub path_style: bool,
    pub allow_http: bool,
}

/// A place that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot use the directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    #[error("the object store's settings do not fit")]
    Settings(#[source] object_store::Error),
    #[error("the endpoint is not an address such as https://s3.example.com")]
    Endpoint,
}

impl Blobs {
    /// In a directory, which is made when it is not there. All servers of a deployment need the same one.
    ///
    /// # Errors
    /// When there is no such directory and none can be made.
    pub fn local(directory: PathBuf, deployment: Uuid) -> Result<Self, PlaceError> {
        let root = directory.join(deployment.to_string());
        fs::create_dir_all(&root).map_err(|error| PlaceError::Directory(root.clone(), error))?;
        let objects = LocalFileSystem::new_with_prefix(&directory)
            .map_err(PlaceError::Settings)?
            // A row that refers to an object survives a power cut; so must the object.
            .with_fsync(true);
        Ok(Self(Some(Arc::new(Place {
            objects: Arc::new(objects),
            root: Path::from(deployment.to_string()),
            part: LOCAL_PART,
            parallel: 1,
            directory: Some(root),
        }))))
    }

    /// In a bucket, spoken to through `client`.
    ///
    /// # Errors
    /// When the settings contradict each other. The bucket itself is not asked.
    pub fn s3(
        settings: &S3,
        client: reqwest::Client,
        deployment: Uuid,
    ) -> Result<Self, PlaceError> {
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_virtual_hosted_style_request(!settings.path_style)
            .with_allow_http(settings.allow_http)
            // Objects are removed one by one, and not every provider knows the request for many.
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                max_retries: 5,
                retry_timeout: Duration::from_secs(60),
                ..RetryConfig::default()
            })
            .with_http_connector(Connector(client));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint_of(settings, endpoint)?);
        }
        if let Some((id, secret)) = &settings.keys {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret.expose_secret());
        }
        let objects = builder.build().map_err(PlaceError::Settings)?;
        Ok(Self(Some(Arc::new(Place {
            objects: Arc::new(objects),
            root: Path::from(deployment.to_string()),
            part: S3_PART,
            parallel: 3,
            directory: None,
        }))))
    }

    /// In this process's memory, for tests.
    #[must_use]
    pub fn memory() -> Self {
        Self(Some(Arc::new(Place {
            objects: Arc::new(InMemory::new()),
            root: Path::from("memory"),
            part: LOCAL_PART,
            parallel: 2,
            directory: None,
        })))
    }
}

/// The library wants the bucket in a custom endpoint, where requests name it in the host.
fn endpoint_of(settings: &S3, endpoint: &str) -> Result<String, PlaceError> {
    let endpoint = endpoint.trim_end_matches('/');
    let (scheme, host) = endpoint.split_once("://").ok_or(PlaceError::Endpoint)?;
    if !["http", "https"].contains(&scheme) || host.is_empty() || host.contains('@') {
        return Err(PlaceError::Endpoint);
    }
    Ok(if settings.path_style {
        endpoint.to_owned()
    } else {
        format!("{scheme}://{}.{host}", settings.bucket)
    })
}

/// Hands out the one client that was made where clients are made.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl Place {
    /// Spread over 256 directories by the id's last, random, byte.
    pub(super) fn path(&self, id: BlobId) -> Path {
        let last = id.0.as_bytes()[15];
        self.root
            .clone()
            .join(format!("{last:02x}"))
            .join(id.0.simple().to_string())
    }

    /// Every object, and when it was written. What is not named as ours is left alone.
    pub(super) fn list(
        &self,
    ) -> BoxStream<'static, Result<(BlobId, Timestamp), object_store::Error>> {
        let root = self.root.clone();
        self.objects
            .list(Some(&self.root))
            .try_filter_map(move |object| {
                let id = object
                    .location
                    .filename()
                    .filter(|name| name.len() == 32)
                    .and_then(|name| Uuid::try_parse(name).ok())
                    .filter(|_| object.location.prefix_matches(&root))
                    .map(BlobId);
                let at = Timestamp::from_micros(object.last_modified.timestamp_micros());
                std::future::ready(Ok(id.map(|id| (id, at))))
            })
            .boxed()
    }

    /// Removes what uploads of killed processes left in a directory. In a bucket they are invisible, and
    /// a lifecycle rule of the bucket is what removes them.
    pub(super) async fn remove_unfinished(&self) -> io::Result<u64> {
        let Some(directory) = self.directory.clone() else {
            return Ok(0);
        };
        let remove = move || {
            let mut removed = 0;
            for shard in fs::read_dir(directory)? {
                let shard = shard?;
                if !shard.file_type()?.is_dir() {
                    continue;
                }
                for file in fs::read_dir(shard.path())? {
                    let file = file?;
                    // The library writes `<name>#<number>` and renames it at the end.
                    let name = file.file_name();
                    let unfinished = name.to_str().is_some_and(|name| name.contains('#'));
                    if unfinished && age(&file).is_some_and(|age| age > STALE) {
                        removed += u64::from(fs::remove_file(file.path()).is_ok());
                    }
                }
            }
            Ok(removed)
        };
        tokio::task::spawn_blocking(remove)
            .await
            .map_err(io::Error::other)?
    }
}

/// How long ago a file was written to, by the file system's clock.
fn age(file: &fs::DirEntry) -> Option<Duration> {
    let written = file.metadata().ok()?.modified().ok()?;
    SystemTime::now().duration_since(written).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_the_bucket_where_the_host_does() {
        let mut settings = S3 {
            endpoint: None,
            bucket: "files".to_owned(),
            region: "r".to_owned(),
            keys: None,
            path_style: true,
            allow_http: true,
        };
        let endpoint = |settings: &S3, text: &str| endpoint_of(settings, text).ok();
        let given = "http://localhost:9000/";
        let wanted = |text: &str| Some(text.to_owned());
        assert_eq!(endpoint(&settings, given), wanted("http://localhost:9000"));
        settings.path_style = false;
        assert_eq!(
            endpoint(&settings, "https://s3.example.com"),
            wanted("https://files.s3.example.com")
        );
        for bad in [
            "s3.example.com",
            "ftp://x",
            "https://",
            "https://u:p@host",
            "",
        ] {
            assert_eq!(endpoint(&settings, bad), None, "{bad}");
        }
    }
}
