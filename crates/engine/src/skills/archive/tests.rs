use zip::read::ZipFile;

use super::*;

const GOOD: &str = "---\nname: my-skill\ndescription: Does things.\n---\n# My skill\n";

fn part(path: &str, data: impl Into<Bytes>) -> Part {
    Part {
        path: path.to_owned(),
        data: data.into(),
    }
}

fn message(parts: Vec<Part>) -> String {
    pack(parts).unwrap_err().to_string()
}

/// One entry of an archive as no decent program would write it.
#[derive(Clone)]
struct Raw {
    name: Vec<u8>,
    /// As it stands in the archive.
    data: Vec<u8>,
    method: u16,
    flags: u16,
    crc: u32,
    declared: u32,
    mode: u32,
    /// Points here instead of to its own local header.
    at: Option<u32>,
}

impl Raw {
    fn stored(name: &str, data: &[u8]) -> Self {
        Self {
            name: name.into(),
            data: data.into(),
            method: 0,
            flags: 0,
            crc: crc(data),
            declared: u32::try_from(data.len()).unwrap(),
            mode: 0o100_644,
            at: None,
        }
    }

    /// Deflated by the usual program.
    fn deflated(name: &str, data: &[u8]) -> Self {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("x", SimpleFileOptions::default()).unwrap();
        zip.write_all(data).unwrap();
        let mut zip = zip.finish_into_readable().unwrap();
        let (start, size) = {
            let file: ZipFile<'_, _> = zip.by_index_raw(0).unwrap();
            (file.data_start().unwrap(), file.compressed_size())
        };
        let bytes = zip.into_inner().into_inner();
        let start = usize::try_from(start).unwrap();
        Self {
            data: bytes[start..start + usize::try_from(size).unwrap()].to_vec(),
            method: 8,
            ..Self::stored(name, data)
        }
    }

    fn skill() -> Self {
        Self::stored("s/SKILL.md", GOOD.as_bytes())
    }
}

fn crc(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn archive(entries: &[Raw]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut table = Vec::new();
    for entry in entries {
        let own = u32::try_from(bytes.len()).unwrap();
        let mut common = Vec::new();
        for field in [20, entry.flags, entry.method, 0, 0x21] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        let size = u32::try_from(entry.data.len()).unwrap();
        for field in [entry.crc, size, entry.declared] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        common.extend_from_slice(&u16::try_from(entry.name.len()).unwrap().to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        if entry.at.is_none() {
            bytes.extend_from_slice(b"PK\x03\x04");
            bytes.extend_from_slice(&common);
            bytes.extend_from_slice(&entry.name);
            bytes.extend_from_slice(&entry.data);
        }
        // Made on Unix.
        table.extend_from_slice(b"PK\x01\x02\x14\x03");
        table.extend_from_slice(&common);
        table.extend_from_slice(&[0; 6]);
        table.extend_from_slice(&(entry.mode << 16).to_le_bytes());
        table.extend_from_slice(&entry.at.unwrap_or(own).to_le_bytes());
        table.extend_from_slice(&entry.name);
    }
    end(bytes, &table, u16::try_from(entries.len()).unwrap())
}

fn end(mut bytes: Vec<u8>, table: &[u8], count: u16) -> Vec<u8> {
    let start = u32::try_from(bytes.len()).unwrap();
    bytes.extend_from_slice(table);
    bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(table.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

fn zipped(entries: &[Raw]) -> Vec<Part> {
    vec![part("skill.zip", archive(entries))]
}

fn with(entry: Raw) -> String {
    message(zipped(&[Raw::skill(), entry]))
}

#[test]
fn files_are_packed_and_come_back() {
    let parts = vec![
        part("my-skill/scripts/run.py", "#!/usr/bin/env python3\n"),
        part("./my-skill/SKILL.md", GOOD),
        part("my-skill/data.bin", vec![0, 159, 146, 150]),
        part("my-skill/empty", ""),
    ];
    let packed = pack(parts.clone()).unwrap();
    assert_eq!(
        (&*packed.name, &*packed.description),
        ("my-skill", "Does things.")
    );
    let files = entries(&packed.archive).unwrap();
    let listed: Vec<_> = files
        .iter()
        .map(|file| (&*file.path, file.mode, file.data.len()))
        .collect();
    assert_eq!(
        listed,
        [
            ("SKILL.md", 0o644, GOOD.len()),
            ("data.bin", 0o644, 4),
            ("empty", 0o644, 0),
            ("scripts/run.py", 0o755, 23),
        ]
    );
    // In any order, and from its own archive: the same bytes.
    let reversed = parts.into_iter().rev().collect();
    assert_eq!(pack(reversed).unwrap(), packed);
    let again = pack(vec![part("x.zip", packed.archive.clone())]).unwrap();
    assert_eq!(again, packed);
}

#[test]
fn the_root_may_be_the_directory() {
    let packed = pack(vec![part("SKILL.md", GOOD), part("a/b", "c")]).unwrap();
    let paths: Vec<_> = entries(&packed.archive)
        .unwrap()
        .into_iter()
        .map(|file| file.path)
        .collect();
    assert_eq!(paths, ["SKILL.md", "a/b"]);
    // All other files in a directory of the skill's own name: it stays below.
    let packed = pack(vec![part("SKILL.md", GOOD), part("my-skill/x", "")]).unwrap();
    assert_eq!(entries(&packed.archive).unwrap()[1].path, "my-skill/x");
}

#[test]
fn the_directory_names_a_skill_without_a_name() {
    let text = "---\ndescription: d\n---\n";
    let packed = pack(vec![part("from-here/SKILL.md", text)]).unwrap();
    assert_eq!(packed.name, "from-here");
    insta::assert_snapshot!(message(vec![part("SKILL.md", text)]), @"SKILL.md: the front matter has no `name`, and the files are in no directory to name the skill after");
    insta::assert_snapshot!(message(vec![part("From Here/SKILL.md", text)]), @"SKILL.md: `name` may have only lower-case letters, digits and hyphens");
}

#[test]
fn zips_keep_what_can_be_run() {
    let entry = |name: &str, mode| Raw {
        mode,
        ..Raw::deflated(name, b"#!/bin/sh\necho\n")
    };
    let bytes = archive(&[
        Raw {
            mode: 0o040_755,
            ..Raw::stored("s/", b"")
        },
        Raw::skill(),
        entry("s/plain", 0o100_640),
        entry("s/run", 0o104_711),
        entry("s/from-elsewhere", 0),
        Raw::stored("__MACOSX/s/._SKILL.md", b"x"),
        Raw::stored("s/.DS_Store", b"x"),
    ]);
    // Told by its name, or by how it begins.
    for name in ["S.ZIP", "upload"] {
        let packed = pack(vec![part(name, bytes.clone())]).unwrap();
        let modes: Vec<_> = entries(&packed.archive)
            .unwrap()
            .into_iter()
            .map(|file| (file.path, file.mode))
            .collect();
        let wanted = [
            ("SKILL.md", 0o644),
            ("from-elsewhere", 0o644),
            ("plain", 0o644),
            ("run", 0o755),
        ];
        assert_eq!(modes, wanted.map(|(path, mode)| (path.to_owned(), mode)));
    }
    // Beside other files a zip is a file like any other.
    let packed = pack(vec![part("SKILL.md", GOOD), part("t.zip", bytes)]).unwrap();
    assert_eq!(entries(&packed.archive).unwrap().len(), 2);
}

#[test]
fn what_is_no_skill_is_told() {
    insta::assert_snapshot!(message(vec![]), @"there are no files");
    insta::assert_snapshot!(message(vec![part("a/skill.md", GOOD)]), @"there is no `SKILL.md` (in upper and lower case as here), neither at the root nor in the one directory that holds everything");
    insta::assert_snapshot!(message(vec![part("a/SKILL.md", GOOD), part("b/x", "")]), @"there is no `SKILL.md` (in upper and lower case as here), neither at the root nor in the one directory that holds everything");
    insta::assert_snapshot!(message(vec![part("a/b/SKILL.md", GOOD)]), @"there is no `SKILL.md` (in upper and lower case as here), neither at the root nor in the one directory that holds everything");
    insta::assert_snapshot!(message(vec![part("SKILL.md", "# no front matter")]), @"SKILL.md: must begin with YAML front matter: a line `---`, then `name: ...` and `description: ...`, then a line `---`");
    insta::assert_snapshot!(message(vec![part("SKILL.md", vec![0xff, 0xfe])]), @"`SKILL.md` is not UTF-8 text");
    insta::assert_snapshot!(message(vec![part("s.zip", "no zip")]), @"the zip archive cannot be read: invalid Zip archive: Could not find EOCD");
    insta::assert_snapshot!(message(zipped(&[])), @"there is no `SKILL.md` (in upper and lower case as here), neither at the root nor in the one directory that holds everything");
    insta::assert_snapshot!(message(vec![part("SKILL.md", GOOD), part("../x", "")]), @"the path `../x` has `..`");
    insta::assert_snapshot!(message(vec![part("SKILL.md", GOOD), part("SKILL.md", GOOD)]), @"`SKILL.md` is there twice");
    insta::assert_snapshot!(message(vec![part("", GOOD)]), @"the path `` has an empty name");
}

#[test]
fn paths_of_a_zip_are_as_hostile_as_any() {
    for path in [
        "../x",
        "s/../../x",
        "/etc/passwd",
        "c:\\x",
        "C:/x",
        "s\\x",
        "s/a\0b",
        "s/a\x1bb",
        "..",
        "s//x",
        "s/./..",
        "../",
        "/",
        "s/../",
    ] {
        assert!(
            pack(zipped(&[Raw::skill(), Raw::stored(path, b"")])).is_err(),
            "{path:?}"
        );
    }
    assert!(pack(zipped(&[Raw::stored("./", b""), Raw::skill()])).is_ok());
    // No valid UTF-8, without the flag that says it were any: the old code page.
    let named = Raw {
        name: b"s/\x84".to_vec(),
        ..Raw::stored("", b"")
    };
    let packed = pack(zipped(&[Raw::skill(), named])).unwrap();
    assert_eq!(entries(&packed.archive).unwrap()[1].path, "ä");
}

#[test]
fn one_path_is_one_file() {
    insta::assert_snapshot!(with(Raw::skill()), @"the archive has a path twice");
    insta::assert_snapshot!(with(Raw::stored("s/./SKILL.md", b"")), @"`s/SKILL.md` is there twice");
    insta::assert_snapshot!(with(Raw::stored("s/skill.MD", b"")), @"`s/skill.MD` and `s/SKILL.md` differ only in upper and lower case");
    insta::assert_snapshot!(with(Raw::stored("s", b"")), @"`s` is a file and a directory");
    insta::assert_snapshot!(with(Raw::stored("s/SKILL.md/x", b"")), @"`s/SKILL.md` is a file and a directory");
}

#[test]
fn only_files_and_directories() {
    let of_mode = |mode| {
        with(Raw {
            mode,
            ..Raw::stored("s/x", b"/etc/passwd")
        })
    };
    insta::assert_snapshot!(of_mode(0o120_777), @"`s/x` is a symbolic link");
    for special in [0o010_644, 0o020_644, 0o060_644, 0o140_644, 0o030_644] {
        assert!(
            of_mode(special).ends_with("is a special file"),
            "{special:o}"
        );
    }
    insta::assert_snapshot!(of_mode(0o040_755), @"`s/x` is a directory with content");
    insta::assert_snapshot!(with(Raw::stored("s/x/", b"content")), @"`s/x/` is a directory with content");
}

#[test]
fn only_what_can_be_read() {
    let skewed = |change: fn(&mut Raw)| {
        let mut entry = Raw::deflated("s/x", &[7; 1000]);
        change(&mut entry);
        with(entry)
    };
    insta::assert_snapshot!(skewed(|entry| entry.flags = 1), @"`s/x` is encrypted");
    // AES, which hides the method in an extra field; bzip2; deflate64; nothing at all.
    for method in [99, 12, 9, 4711] {
        let text = with(Raw {
            method,
            ..Raw::deflated("s/x", &[7; 1000])
        });
        assert!(
            text.contains("`s/x`") || text.contains("cannot be read"),
            "{method}: {text}"
        );
    }
    insta::assert_snapshot!(skewed(|entry| entry.crc ^= 1), @"`s/x` is damaged: its content is not what the archive says about it");
    insta::assert_snapshot!(skewed(|entry| entry.data.truncate(3)), @"`s/x` is damaged: its content is not what the archive says about it");
    insta::assert_snapshot!(skewed(|entry| entry.declared = 1001), @"`s/x` is damaged: its content is not what the archive says about it");
}

#[test]
fn bombs_are_not_set_off() {
    let zeros = |size: u64| vec![0; usize::try_from(size).unwrap()];
    // As large as may be, and one byte more: said honestly, and lied about.
    let room = MAX_BYTES - GOOD.len() as u64;
    assert!(pack(zipped(&[Raw::skill(), Raw::deflated("s/x", &zeros(room))])).is_ok());
    let bomb = Raw::deflated("s/x", &zeros(room + 1));
    assert!(bomb.data.len() < 100_000);
    insta::assert_snapshot!(with(bomb.clone()), @"the files have more than 31457280 bytes in all");
    let liar = Raw {
        declared: 100,
        ..bomb.clone()
    };
    insta::assert_snapshot!(with(liar), @"`s/x` is damaged: its content is not what the archive says about it");
    let boaster = Raw {
        declared: u32::MAX - 1,
        ..Raw::stored("s/x", b"")
    };
    insta::assert_snapshot!(with(boaster), @"the files have more than 31457280 bytes in all");
    // Many entries that are one and the same piece of data.
    let first = Raw::deflated("s/0", &zeros(MAX_BYTES / 4));
    let again = |number: usize| Raw {
        name: format!("s/{number}").into_bytes(),
        at: Some(0),
        ..first.clone()
    };
    let quoted: Vec<Raw> = std::iter::once(first.clone())
        .chain((1..200).map(again))
        .collect();
    insta::assert_snapshot!(message(zipped(&quoted)), @"entries of the archive overlap");
    let large = vec![part("SKILL.md", GOOD), part("x", zeros(room + 1))];
    insta::assert_snapshot!(message(large), @"the files have more than 31457280 bytes in all");
    // A zip inside is not looked into.
    let inner = archive(&[bomb]);
    let packed = pack(zipped(&[Raw::skill(), Raw::stored("s/inner.zip", &inner)])).unwrap();
    assert_eq!(entries(&packed.archive).unwrap()[1].data, inner);
}

#[test]
fn counts_are_bounded() {
    let many = |count: usize| -> Vec<Raw> {
        let file = |number| Raw::stored(&format!("s/{number}"), b"");
        std::iter::once(Raw::skill())
            .chain((1..count).map(file))
            .collect()
    };
    assert!(pack(zipped(&many(MAX_ENTRIES))).is_ok());
    insta::assert_snapshot!(message(zipped(&many(MAX_ENTRIES + 1))), @"there are more than 5000 files and directories");
    assert_eq!(message(zipped(&many(60_000))), message(zipped(&many(5001))));
    let parts = (0..=MAX_ENTRIES).map(|number| part(&format!("s/{number}"), ""));
    assert_eq!(message(parts.collect()), message(zipped(&many(5001))));

    // 100,000 entries need the zip64 format, whose counts are not to be trusted.
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for number in 0..100_000 {
        let name = format!("s/{number}");
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
    }
    let bytes = zip.finish().unwrap().into_inner();
    insta::assert_snapshot!(message(vec![part("s.zip", bytes)]), @"the archive is in the zip64 format, for which it is too small");
    // More in the table than the end says, and fewer.
    let bytes = archive(&many(3));
    for count in [0_u8, 1, 2, 4, 255] {
        let mut bytes = bytes.clone();
        let at = bytes.len() - 14;
        bytes[at] = count;
        bytes[at + 2] = count;
        let _ = pack(vec![part("s.zip", bytes)]);
    }
}

#[test]
fn damage_is_an_error() {
    let good = archive(&[Raw::skill(), Raw::deflated("s/x", &[1; 3000])]);
    for end in 0..good.len() {
        assert!(
            pack(vec![part("s.zip", good[..end].to_vec())]).is_err(),
            "{end}"
        );
    }
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let _ = pack(vec![part("s.zip", bytes)]);
        }
    }
}

proptest::proptest! {
    #[test]
    fn whatever_is_packed_comes_back(
        files in proptest::collection::btree_map("[a-c]{1,2}(/[d-f ]{1,3}){0,3}", proptest::collection::vec(0_u8.., 0..50), 0..8),
    ) {
        let mut parts: Vec<Part> = files
            .iter()
            .map(|(path, data)| part(&format!("s/{path}"), data.clone()))
            .collect();
        parts.push(part("s/SKILL.md", GOOD));
        if let Ok(packed) = pack(parts) {
            let back = entries(&packed.archive).unwrap();
            proptest::prop_assert_eq!(back.len(), files.len() + 1);
            for entry in back.iter().filter(|entry| entry.path != "SKILL.md") {
                proptest::prop_assert_eq!(&entry.data[..], &files[&entry.path][..]);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(0_u8.., 0..300)) {
        let _ = entries(&bytes);
    }
}
