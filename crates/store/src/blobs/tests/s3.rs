//! Against a stand-in that knows as much of S3 as is used here, and remembers what is unfinished.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use selfsame_net::{OperatorOptions, operator_client};
use tokio::net::TcpListener;

use super::*;
use crate::S3;

#[derive(Debug, Default)]
struct Bucket {
    objects: BTreeMap<String, Bytes>,
    /// By upload, then by number.
    uploads: HashMap<String, BTreeMap<u32, Bytes>>,
    /// Sizes of all parts that ever came.
    parts: Vec<usize>,
    unsigned: usize,
}

type Shared = Arc<Mutex<Bucket>>;

async fn bucket() -> (Blobs, Shared) {
    let shared = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = shared.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = serving.clone();
            let service = service_fn(move |request| answer(shared.clone(), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let settings = S3 {
        endpoint: Some(format!("http://{address}")),
        bucket: "contents".to_owned(),
        region: "here".to_owned(),
        keys: Some(("id".to_owned(), "a secret".to_owned().into())),
        path_style: true,
        allow_http: true,
    };
    let client = operator_client(&OperatorOptions::default()).unwrap();
    (
        Blobs::s3(&settings, client, Uuid::from_u128(1)).unwrap(),
        shared,
    )
}

async fn answer(
    shared: Shared,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    // A client may go away in the middle of a part.
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
        return Ok(Response::default());
    };
    let url = url::Url::parse(&format!("http://x{}", head.uri)).unwrap();
    let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
    let key = url
        .path()
        .strip_prefix("/contents")
        .unwrap_or("")
        .trim_start_matches('/');
    let mut bucket = shared.lock().unwrap();
    let authorization = head
        .headers
        .get("authorization")
        .and_then(|v| v.to_str().ok());
    if !authorization.is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256 Credential=id/")) {
        bucket.unsigned += 1;
    }
    let upload = query.get("uploadId");
    let mut status = 200;
    let text = match (&head.method, upload) {
        (&Method::POST, None) if query.contains_key("uploads") => {
            let id = format!("upload-{}", bucket.uploads.len());
            bucket.uploads.insert(id.clone(), BTreeMap::new());
            format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>").into()
        }
        (&Method::PUT, Some(id)) => {
            let number = query["partNumber"].parse().unwrap();
            let length = body.len();
            match bucket.uploads.get_mut(id) {
                Some(parts) => drop(parts.insert(number, body)),
                // It came too late: the upload was given up.
                None => status = 404,
            }
            bucket.parts.push(length);
            Bytes::new()
        }
        (&Method::POST, Some(id)) => {
            let parts = bucket.uploads.remove(id).unwrap();
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            bucket.objects.insert(key.to_owned(), whole.into());
            "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>".into()
        }
        (&Method::DELETE, Some(id)) => {
            bucket.uploads.remove(id).unwrap();
            Bytes::new()
        }
        (&Method::PUT, None) => {
            bucket.objects.insert(key.to_owned(), body);
            Bytes::new()
        }
        (&Method::DELETE, None) => {
            bucket.objects.remove(key);
            Bytes::new()
        }
        (&Method::GET, None) if query.contains_key("list-type") => {
            let entries: String = bucket
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(&query["prefix"]))
                .map(|(key, object)| {
                    format!(
                        "<Contents><Key>{key}</Key><Size>{}</Size>\
                         <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
                        object.len()
                    )
                })
                .collect();
            format!("<ListBucketResult>{entries}</ListBucketResult>").into()
        }
        (&Method::GET, None) if bucket.objects.contains_key(key) => bucket.objects[key].clone(),
        _ => {
            status = 404;
            "<Error><Code>NoSuchKey</Code></Error>".into()
        }
    };
    let response = Response::builder()
        .status(status)
        .header("etag", "\"e\"")
        .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
    Ok(response.body(Full::new(text)).unwrap())
}

#[tokio::test]
async fn contents_go_to_a_bucket_in_parts() {
    let (blobs, bucket) = bucket().await;
    let part = 8 * 1024 * 1024;
    for size in [0, 5, part + 1, 2 * part + 7] {
        let source = pieces(size);
        let whole: Vec<u8> = source
            .iter()
            .flat_map(|p| p.as_ref().unwrap())
            .copied()
            .collect();
        let blob = blobs.put(stream::iter(source), u64::MAX).await.unwrap();
        assert_eq!(blobs.read(blob.id, size).await.unwrap(), whole, "{size}");
        assert_eq!(bucket.lock().unwrap().objects.len(), 1);
        blobs.delete(blob.id).await.unwrap();
        blobs.delete(blob.id).await.unwrap();
        assert!(matches!(
            blobs.get(blob.id).await.err(),
            Some(BlobError::Missing)
        ));
    }
    let bucket = bucket.lock().unwrap();
    assert_eq!(
        (bucket.objects.len(), bucket.uploads.len(), bucket.unsigned),
        (0, 0, 0)
    );
    let mut parts = bucket.parts.clone();
    parts.sort_unstable();
    assert_eq!(parts, [1, 7, part, part, part]);
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_no_parts() {
    let (blobs, bucket) = bucket().await;
    let size = 17 * 1024 * 1024;
    let unfinished = || bucket.lock().unwrap().uploads.len();
    let error = blobs.put(stream::iter(pieces(size)), size as u64 - 1).await;
    assert!(matches!(error, Err(BlobError::TooLarge(_))));
    assert_eq!(unfinished(), 0);
    // The caller does not wait any more.
    let endless = stream::iter(pieces(size)).chain(stream::pending());
    let begun = async {
        while bucket
            .lock()
            .unwrap()
            .uploads
            .values()
            .all(BTreeMap::is_empty)
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        outcome = blobs.put(endless, u64::MAX) => panic!("{outcome:?}"),
        () = begun => {}
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while unfinished() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "parts stay");
        tokio::task::yield_now().await;
    }
    assert!(bucket.lock().unwrap().objects.is_empty());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn strays_are_found_in_a_bucket(pool: PgPool) {
    let (blobs, bucket) = bucket().await;
    let (store, workspace) = store(pool, &blobs).await;
    let (stray, used) = (put(&blobs, b"stray").await, put(&blobs, b"used").await);
    upload(&store, workspace, used).await;
    assert_eq!(store.blob_adopt(Timestamp::LATEST).await.unwrap(), 1);
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    assert!(blobs.get(stray.id).await.is_err());
    assert_eq!(bucket.lock().unwrap().objects.len(), 1);
}
