use futures_util::{StreamExt as _, stream};

use super::*;

const TYPE: &str = "multipart/form-data; boundary=XX";
const FORM: &str = "--XX\r\n\
    Content-Disposition: form-data; name=\"expires_in_seconds\"\r\n\
    \r\n\
    3600\r\n\
    --XX  \r\n\
    content-disposition: form-data; name=file; filename=\"a;\\\"b\\\".txt\"\r\n\
    Content-Type: text/plain\r\n\
    X-More: ignored\r\n\
    \r\n\
    line\r\n--X\r\n-\r\n--\r\n\r\n--XX\r\n\
    Content-Disposition: form-data; name=\"empty\"; filename=\"\"\r\n\
    \r\n\
    \r\n--XX--\r\nafterwards";

/// A request whose body comes in pieces of this size.
fn request(content_type: &str, body: &[u8], step: usize) -> Request {
    let pieces: Vec<io::Result<Bytes>> = body
        .chunks(step)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    Request::post("/")
        .header("content-type", content_type)
        .body(Body::from_stream(stream::iter(pieces)))
        .unwrap()
}

async fn read(form: &mut Multipart) -> Result<Vec<(Part, Vec<u8>)>, ApiError> {
    let mut parts = Vec::new();
    while let Some(part) = form.next().await? {
        let mut content = Vec::new();
        while let Some(piece) = form.chunk().await? {
            content.extend_from_slice(&piece);
        }
        parts.push((part, content));
    }
    Ok(parts)
}

fn open(content_type: &str, body: &[u8], step: usize) -> Result<Multipart, ApiError> {
    let patience = Duration::from_secs(10);
    Multipart::new(request(content_type, body, step), 100_000, patience)
}

async fn refused(body: &[u8]) -> String {
    let mut form = open(TYPE, body, 7).unwrap();
    read(&mut form).await.unwrap_err().message.into_owned()
}

#[tokio::test]
async fn parts_are_the_same_however_they_arrive() {
    for step in 1..FORM.len() {
        let mut form = open(TYPE, FORM.as_bytes(), step).unwrap();
        let parts = read(&mut form).await.unwrap();
        let [expires, file, empty] = &parts[..] else {
            panic!("{parts:?}");
        };
        assert_eq!(expires.0.name, "expires_in_seconds");
        assert_eq!(expires.1, b"3600");
        assert_eq!(file.0.filename.as_deref(), Some("a;\"b\".txt"));
        assert_eq!(file.0.content_type.as_deref(), Some("text/plain"));
        assert_eq!(file.1, b"line\r\n--X\r\n-\r\n--\r\n");
        assert_eq!(empty.0.filename.as_deref(), Some(""));
        assert_eq!(empty.1, b"");
        assert_eq!(form.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn parts_may_be_passed_over() {
    let mut form = open(TYPE, FORM.as_bytes(), 5).unwrap();
    let mut names = Vec::new();
    while let Some(part) = form.next().await.unwrap() {
        names.push(part.name);
    }
    assert_eq!(names, ["expires_in_seconds", "file", "empty"]);
}

#[tokio::test]
async fn what_is_broken_is_refused() {
    let at = |cut: usize| refused(&FORM.as_bytes()[..cut]);
    // Wherever it is cut off before its end.
    let end = FORM.find("--\r\nafterwards").unwrap() + 2;
    for cut in 0..end {
        let message = at(cut).await;
        assert!(message.contains("it ends"), "{cut}: {message}");
    }
    assert!(refused(b"--YY\r\n\r\n").await.contains("it ends"));
    let long = vec![b'x'; 50_000];
    assert!(refused(&long).await.contains("does not begin"));
    let long = format!("--XX\r\nx: {}", "y".repeat(50_000));
    assert!(refused(long.as_bytes()).await.contains("too long"));
    let many = format!("--XX\r\n{}", "x: y\r\n".repeat(10_000));
    assert!(refused(many.as_bytes()).await.contains("too long"));
    for head in [
        "",
        "nonsense",
        "Content-Disposition: form-data",
        "Content-Disposition: form-data; filename=x",
        "Content-Disposition: attachment; name=x",
        "Content-Disposition: form-data; name=\"x",
        "Content-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=y",
    ] {
        let body = format!("--XX\r\n{head}\r\n\r\ncontent\r\n--XX--");
        let message = refused(body.as_bytes()).await;
        assert!(message.contains("well-formed"), "{head}: {message}");
    }
    let message = refused(b"--XX\r\nX: \xff\r\n\r\n\r\n--XX--").await;
    assert!(message.contains("UTF-8"), "{message}");
    let message = refused(b"--XXYY\r\nX: y\r\n\r\n\r\n--XX--").await;
    assert!(message.contains("in its line"), "{message}");
}

#[tokio::test]
async fn boundaries_are_asked_for() {
    for bad in [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"\"",
        "multipart/form-data; charset=x",
        "multipart/mixed; boundary=XX",
        &format!("multipart/form-data; boundary={}", "x".repeat(300)),
    ] {
        assert!(open(bad, b"", 1).is_err(), "{bad}");
    }
    for good in [
        "multipart/form-data; boundary=\"XX\"",
        "Multipart/Form-Data; charset=utf-8; Boundary=XX",
    ] {
        let mut form = open(good, FORM.as_bytes(), 100).unwrap();
        assert_eq!(read(&mut form).await.unwrap().len(), 3, "{good}");
    }
}

#[tokio::test]
async fn sizes_and_silences_are_limited() {
    let mut request = request(TYPE, FORM.as_bytes(), 10);
    let length = header::HeaderValue::from(1_000_000);
    request.headers_mut().insert(header::CONTENT_LENGTH, length);
    let error = Multipart::new(request, 100_000, Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);

    let large = format!(
        "--XX\r\nContent-Disposition: form-data; name=f\r\n\r\n{}\r\n--XX--",
        "x".repeat(200_000)
    );
    let mut form = open(TYPE, large.as_bytes(), 1000).unwrap();
    let error = read(&mut form).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);

    let mut form = open(TYPE, large.as_bytes(), 1000).unwrap();
    form.next().await.unwrap();
    let error = form.text("f", 100).await.unwrap_err();
    assert!(error.message.starts_with("f: "), "{error}");

    // A client that has fallen silent.
    let begun = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"--XX\r\n"))]);
    let body = Body::from_stream(begun.chain(stream::pending()));
    let request = Request::post("/").header("content-type", TYPE).body(body);
    let patience = Duration::from_millis(20);
    let mut form = Multipart::new(request.unwrap(), 1000, patience).unwrap();
    let error = form.next().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
}

#[tokio::test]
async fn a_part_is_a_stream_whose_error_comes_back() {
    let cut = FORM.find("-\r\n--").unwrap();
    let mut form = open(TYPE, &FORM.as_bytes()[..cut], 10).unwrap();
    form.next().await.unwrap();
    form.next().await.unwrap();
    let pieces: Vec<_> = form.content().collect().await;
    let error = pieces.into_iter().find_map(Result::err).unwrap();
    assert!(refusal(error).message.contains("it ends before"));
}

#[test]
fn names_in_every_encoding() {
    let name = |parameters: &str| {
        let head = format!("\r\nContent-Disposition: form-data; name=f; {parameters}");
        part(head.as_bytes()).unwrap().filename
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        name("filename=\"C:\\temp\\x.txt\""),
        some("C:\\temp\\x.txt")
    );
    assert_eq!(name("filename=plain.txt; x=y"), some("plain.txt"));
    assert_eq!(name("filename=\"naïve.txt\""), some("naïve.txt"));
    assert_eq!(
        name("filename=\"x\"; filename*=UTF-8''na%C3%AFve%20.txt"),
        some("naïve .txt")
    );
    for bad in [
        "latin1''x",
        "utf-8''%zz",
        "utf-8''%ff",
        "utf-8''%c",
        "nothing",
    ] {
        assert_eq!(name(&format!("filename=x; filename*={bad}")), some("x"));
    }
    assert_eq!(name("x=y"), None);
}

#[tokio::test]
async fn a_slow_body_lives_while_it_moves() {
    let patience = Duration::from_secs(1);
    let pace = Duration::from_millis(20);
    let begun = tokio::time::Instant::now();
    let step = FORM.len() * 20 / 1200;
    let pieces: Vec<Bytes> = FORM
        .as_bytes()
        .chunks(step)
        .map(Bytes::copy_from_slice)
        .collect();
    let slowly = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pace).await;
        Ok::<_, io::Error>(piece)
    });
    let body = Body::from_stream(slowly);
    let request = Request::post("/").header("content-type", TYPE).body(body);
    let mut form = Multipart::new(request.unwrap(), 100_000, patience).unwrap();
    assert_eq!(read(&mut form).await.unwrap().len(), 3);
    assert!(begun.elapsed() > patience, "it was not slow: {step}");
}
