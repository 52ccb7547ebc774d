//! The YAML between two lines `---` at the head of a `SKILL.md`.
//!
//! Only `name` and `description` are looked at, as events of the parser: nothing is built from the rest,
//! and an alias is never expanded. The text may come from an upload or from a stranger's repository.

use granit_parser::{Event, Parser, ScalarStyle};

/// Most bytes between the two lines.
const LIMIT: usize = 64 * 1024;
const NAME: usize = 64;
const DESCRIPTION: usize = 1024;
const RESERVED: [&str; 2] = ["anthropic", "claude"];

/// What a `SKILL.md` says about itself, as it is written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontMatter {
    pub name: Option<String>,
    pub description: Option<String>,
}

/// What is wrong with a `SKILL.md`, for the one who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SKILL.md: {0}")]
pub struct FrontMatterError(String);

fn error<T>(message: impl Into<String>) -> Result<T, FrontMatterError> {
    Err(FrontMatterError(message.into()))
}

/// Reads the front matter of a `SKILL.md`. Safe on hostile input of any size.
///
/// # Errors
/// When there is none, or it is not a YAML mapping with texts in `name` and `description`.
pub fn parse_front_matter(text: &str) -> Result<FrontMatter, FrontMatterError> {
    read_mapping(cut(text)?)
}

/// The text between the lines.
fn cut(text: &str) -> Result<&str, FrontMatterError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(start) = text
        .split_inclusive('\n')
        .next()
        .filter(|line| line.ends_with('\n') && line.trim_end() == "---")
        .map(str::len)
    else {
        return error(
            "must begin with YAML front matter: a line `---`, then `name: ...` and \
                      `description: ...`, then a line `---`",
        );
    };
    let mut end = start;
    for line in text[start..].split_inclusive('\n') {
        if matches!(line.trim_end(), "---" | "...") {
            return Ok(&text[start..end]);
        }
        end += line.len();
        if end - start > LIMIT {
            return error(format!("the front matter is longer than {LIMIT} bytes"));
        }
    }
    error("the front matter has no end: a line `---` is missing")
}

fn read_mapping(yaml: &str) -> Result<FrontMatter, FrontMatterError> {
    let mut found = FrontMatter::default();
    // How many collections are open; keys and values of the mapping itself are at 1.
    let mut depth = 0_usize;
    let mut documents = 0_usize;
    // The key whose value comes next, at depth 1.
    let mut key: Option<String> = None;
    let mut at_key = true;
    for event in Parser::new_from_str(yaml) {
        let event = match event {
            Ok((event, _)) => event,
            Err(problem) => {
                return error(format!(
                    "the front matter is not valid YAML: {} at line {}; put a text that has `: ` or \
                     begins with a special character in quotes",
                    problem.info(),
                    problem.marker().line() + 1,
                ));
            }
        };
        match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return error("the front matter has more than one YAML document");
                }
            }
            Event::MappingStart(..) if depth == 0 => depth = 1,
            Event::SequenceStart(..) if depth == 0 => return error(NO_MAPPING),
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if depth == 1 {
                    wants_text(key.as_deref())?;
                }
                depth += 1;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                depth = depth.saturating_sub(1);
                if depth == 1 {
                    (key, at_key) = (None, !at_key);
                }
            }
            Event::Scalar(value, style, ..) => match depth {
                0 if value.is_empty() && style == ScalarStyle::Plain => {}
                0 => return error(NO_MAPPING),
                1 if at_key => (key, at_key) = (Some(value.into_owned()), false),
                1 => {
                    let null = style == ScalarStyle::Plain
                        && matches!(&*value, "" | "~" | "null" | "Null" | "NULL");
                    found.set(key.take().as_deref(), (!null).then(|| value.into_owned()))?;
                    at_key = true;
                }
                _ => {}
            },
            Event::Alias(_) if depth == 1 => {
                wants_text(key.as_deref())?;
                (key, at_key) = (None, !at_key);
            }
            _ => {}
        }
    }
    Ok(found)
}

const NO_MAPPING: &str = "the front matter must consist of lines such as `name: ...`";

/// Refuses anything but a text as the value of a key that matters.
fn wants_text(key: Option<&str>) -> Result<(), FrontMatterError> {
    match key {
        Some(key @ ("name" | "description")) => error(format!("`{key}` must be a text")),
        _ => Ok(()),
    }
}

impl FrontMatter {
    fn set(&mut self, key: Option<&str>, value: Option<String>) -> Result<(), FrontMatterError> {
        let (key, field) = match key {
            Some("name") => ("name", &mut self.name),
            Some("description") => ("description", &mut self.description),
            _ => return Ok(()),
        };
        if field.is_some() {
            return error(format!("`{key}` is given twice"));
        }
        *field = value.map(|text| text.trim().to_owned());
        Ok(())
    }

    /// Name and description of an uploaded skill, by the rules for uploads. `directory` is the name where
    /// the front matter has none.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check(self, directory: Option<&str>) -> Result<(String, String), FrontMatterError> {
        let Some(name) = self.name.or_else(|| directory.map(str::to_owned)) else {
            return error(
                "the front matter has no `name`, and the files are in no directory to name \
                          the skill after",
            );
        };
        check_name(&name)?;
        let Some(description) = self.description else {
            return error(
                "the front matter has no `description`: say what the skill does and when \
                          to use it",
            );
        };
        check_description(&description)?;
        Ok((name, description))
    }

    /// Name and description of a skill found in a repository, whose authors knew no rules of ours: what
    /// is too long is cut. `None` when it says too little to be of use.
    #[must_use]
    pub fn describe(self, directory: &str) -> Option<(String, String)> {
        let cut = |text: &str, length: usize| -> String {
            let words: Vec<&str> = text.split_whitespace().collect();
            words
                .join(" ")
                .chars()
                .filter(|c| !c.is_control())
                .take(length)
                .collect()
        };
        let name = self.name.filter(|name| !name.trim().is_empty());
        let name = cut(name.as_deref().unwrap_or(directory), NAME);
        let description = cut(self.description.as_deref()?, DESCRIPTION);
        (!name.is_empty() && !description.is_empty()).then_some((name, description))
    }
}

/// The rules for a skill's name, which is also the name of its directory.
fn check_name(name: &str) -> Result<(), FrontMatterError> {
    let count = name.chars().count();
    if !(1..=NAME).contains(&count) {
        return error(format!(
            "`name` must have 1 to {NAME} characters, has {count}"
        ));
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        return error("`name` may have only lower-case letters, digits and hyphens");
    }
    if let Some(word) = RESERVED.into_iter().find(|word| name.contains(word)) {
        return error(format!(
            "`name` must not contain the reserved word `{word}`"
        ));
    }
    Ok(())
}

fn check_description(description: &str) -> Result<(), FrontMatterError> {
    let count = description.chars().count();
    if !(1..=DESCRIPTION).contains(&count) {
        return error(format!(
            "`description` must have 1 to {DESCRIPTION} characters, has {count}"
        ));
    }
    if has_tag(description) {
        return error("`description` must not contain XML tags");
    }
    if description.contains('\0') {
        return error("`description` must not contain the character U+0000");
    }
    Ok(())
}

/// Whether there is something like `<name ...>` or `</name>`.
fn has_tag(text: &str) -> bool {
    text.split('<').skip(1).any(|rest| {
        let body = rest.strip_prefix('/').unwrap_or(rest);
        body.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && body.contains('>')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<(Option<String>, Option<String>), String> {
        parse_front_matter(&format!("---\n{yaml}\n---\n# Body\n"))
            .map(|found| (found.name, found.description))
            .map_err(|error| error.to_string())
    }

    fn texts(yaml: &str) -> (String, String) {
        let (name, description) = parse(yaml).unwrap();
        (name.unwrap_or_default(), description.unwrap_or_default())
    }

    #[test]
    fn texts_in_every_notation() {
        let wanted = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(texts("name: a\ndescription: b c"), wanted("a", "b c"));
        assert_eq!(
            texts("name: \"a\"\ndescription: 'it''s: b'"),
            wanted("a", "it's: b")
        );
        assert_eq!(
            texts("description: >\n  two\n  lines\nname: a # not this"),
            wanted("a", "two lines")
        );
        assert_eq!(
            texts("description: |\n  x\n  ---\n  y\nname: 1"),
            wanted("1", "x\n---\ny")
        );
        assert_eq!(texts("{name: a, description: b}"), wanted("a", "b"));
        assert_eq!(
            texts(
                "metadata:\n  name: no\n  list: [description, {name: no}]\nname: a\ndescription: b"
            ),
            wanted("a", "b")
        );
        assert_eq!(texts("? [name, x]\n: no\nname: a"), wanted("a", ""));
        assert_eq!(texts("x: &here no\ny: *here\nname: a"), wanted("a", ""));
        assert_eq!(parse("name:\ndescription: null"), Ok((None, None)));
        assert_eq!(parse(""), Ok((None, None)));
        assert_eq!(parse("# a comment"), Ok((None, None)));
        // Lines of another system, and a mark at the very beginning.
        let found =
            parse_front_matter("\u{feff}---\r\nname: a\r\ndescription: b\r\n---\r\n").unwrap();
        assert_eq!(found.name.as_deref(), Some("a"));
        assert_eq!(found.description.as_deref(), Some("b"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |yaml: &str| parse(yaml).unwrap_err();
        insta::assert_snapshot!(message("name: a\ndescription: Use when: always"), @"SKILL.md: the front matter is not valid YAML: mapping values are not allowed in this context at line 3; put a text that has `: ` or begins with a special character in quotes");
        insta::assert_snapshot!(message("name: [a]"), @"SKILL.md: `name` must be a text");
        insta::assert_snapshot!(message("description: {a: b}"), @"SKILL.md: `description` must be a text");
        insta::assert_snapshot!(message("x: &a b\nname: *a"), @"SKILL.md: `name` must be a text");
        insta::assert_snapshot!(message("- name"), @"SKILL.md: the front matter must consist of lines such as `name: ...`");
        insta::assert_snapshot!(message("name"), @"SKILL.md: the front matter must consist of lines such as `name: ...`");
        insta::assert_snapshot!(message("name: a\nname: b"), @"SKILL.md: `name` is given twice");
        insta::assert_snapshot!(message("name: a\n--- x"), @"SKILL.md: the front matter has more than one YAML document");
        let whole = |text: &str| parse_front_matter(text).unwrap_err().to_string();
        insta::assert_snapshot!(whole("# A skill"), @"SKILL.md: must begin with YAML front matter: a line `---`, then `name: ...` and `description: ...`, then a line `---`");
        insta::assert_snapshot!(whole(""), @"SKILL.md: must begin with YAML front matter: a line `---`, then `name: ...` and `description: ...`, then a line `---`");
        insta::assert_snapshot!(whole("---\nname: a\n"), @"SKILL.md: the front matter has no end: a line `---` is missing");
        assert_eq!(whole("---"), whole(""));
        assert!(whole(&format!("---\n{}\n---\n", "x".repeat(LIMIT))).contains("longer than"));
    }

    #[test]
    fn hostile_texts_end_soon() {
        // Nesting, aliases of aliases, and keys without end.
        assert!(parse(&"[".repeat(60_000)).is_err());
        assert!(parse(&"{a: ".repeat(10_000)).is_err());
        assert!(parse(&format!("a: {}", "- ".repeat(30_000))).is_err());
        let mut laughs = "a0: &a0 [x, x]\n".to_owned();
        for level in 1..40 {
            let below = level - 1;
            laughs +=
                &format!("a{level}: &a{level} [*a{below}, *a{below}, *a{below}, *a{below}]\n");
        }
        assert_eq!(texts(&(laughs + "name: a")).0, "a");
        assert!(parse("name: \"\\ud800\"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(yaml in "[-a-z:{}\\[\\]&*!|>'\"#%@ \n\t\\\\,?]{0,80}", any: String) {
            let _ = parse(&yaml);
            let _ = parse(&any);
            let _ = parse_front_matter(&any);
        }
    }

    #[test]
    fn rules_of_uploads() {
        let check = |name: &str, description: &str, directory: Option<&str>| {
            FrontMatter {
                name: (!name.is_empty()).then(|| name.to_owned()),
                description: (!description.is_empty()).then(|| description.to_owned()),
            }
            .check(directory)
            .map(|(name, _)| name)
            .map_err(|error| error.to_string())
        };
        let long = "n".repeat(64);
        assert_eq!(check(&long, "d", None), Ok(long.clone()));
        assert_eq!(
            check("", "d", Some("from-directory")),
            Ok("from-directory".to_owned())
        );
        assert_eq!(
            check("a", "1 < 2 and 3 > 2, a<-b", None),
            Ok("a".to_owned())
        );
        assert!(check("a", &"d".repeat(1024), None).is_ok());
        insta::assert_snapshot!(check("", "d", None).unwrap_err(), @"SKILL.md: the front matter has no `name`, and the files are in no directory to name the skill after");
        insta::assert_snapshot!(check("", "d", Some("My Skill")).unwrap_err(), @"SKILL.md: `name` may have only lower-case letters, digits and hyphens");
        insta::assert_snapshot!(check(&(long + "n"), "d", None).unwrap_err(), @"SKILL.md: `name` must have 1 to 64 characters, has 65");
        insta::assert_snapshot!(check("my-claude-skill", "d", None).unwrap_err(), @"SKILL.md: `name` must not contain the reserved word `claude`");
        insta::assert_snapshot!(check("a", "", None).unwrap_err(), @"SKILL.md: the front matter has no `description`: say what the skill does and when to use it");
        insta::assert_snapshot!(check("a", &"d".repeat(1025), None).unwrap_err(), @"SKILL.md: `description` must have 1 to 1024 characters, has 1025");
        insta::assert_snapshot!(check("a", "see <b>this</b>", None).unwrap_err(), @"SKILL.md: `description` must not contain XML tags");
        insta::assert_snapshot!(check("a", "x </system-prompt> y", None).unwrap_err(), @"SKILL.md: `description` must not contain XML tags");
        assert!(check("a", "x\0", None).is_err());
        for bad in ["A", "a b", "a_b", "ä", "..", "a/b", "<b>", "anthropic"] {
            assert!(check(bad, "d", None).is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories_are_taken_as_they_are() {
        let describe = |name: &str, description: Option<&str>| {
            FrontMatter {
                name: (!name.is_empty()).then(|| name.to_owned()),
                description: description.map(str::to_owned),
            }
            .describe("directory")
        };
        let (name, description) = describe("Claude's\nTools", Some(" a\n\n\x1b[1mb ")).unwrap();
        assert_eq!((&*name, &*description), ("Claude's Tools", "a [1mb"));
        assert_eq!(describe("", Some("d")).unwrap().0, "directory");
        assert_eq!(
            describe("a", Some(&"d".repeat(5000))).unwrap().1.len(),
            1024
        );
        assert_eq!(describe("a", None), None);
        assert_eq!(describe("a", Some(" \n")), None);
    }
}
