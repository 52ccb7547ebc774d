//! A grader's verdict: what it must hold, and the explanation that is made of it.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Value, json};

/// The tool that gives a verdict.
pub const TOOL: &str = "submit_verdict";

/// Most criteria of one verdict.
const MAX_CRITERIA: usize = 200;
/// Longest texts that are kept, in characters: of a criterion's name, and of anything else.
const MAX_NAME: usize = 500;
const MAX_TEXT: usize = 4000;
/// Longest explanation, in characters.
const MAX_EXPLANATION: usize = 32_768;

/// How an evaluation ended, the number of iterations apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    Satisfied,
    NeedsRevision,
    /// The rubric cannot be applied.
    Failed,
}

impl Judgement {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Satisfied => "satisfied",
            Self::NeedsRevision => "needs_revision",
            Self::Failed => "failed",
        }
    }
}

/// What a grading found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub judgement: Judgement,
    /// For the client and the agent.
    pub explanation: String,
}

#[derive(Debug, Deserialize)]
struct Submitted {
    criteria: Vec<Criterion>,
    result: Judgement,
    summary: String,
}

#[derive(Debug, Deserialize)]
struct Criterion {
    criterion: String,
    finding: String,
    met: bool,
    #[serde(default)]
    gap: Option<String>,
    #[serde(default)]
    change: Option<String>,
}

/// The tool as the grader sees it.
pub(super) fn definition() -> Value {
    let string = |description: &str| json!({"type": "string", "description": description});
    json!({
        "name": TOOL,
        "description": "Gives your verdict. It counts only when you are asked for it at the end, and you can \
            give it once.",
        "input_schema": {
            "type": "object",
            "properties": {
                "criteria": {
                    "type": "array",
                    "description": "Every criterion of the rubric, once, in the rubric's order. Empty only if the \
                        rubric cannot be applied.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "criterion": string("The criterion in a few words of the rubric."),
                            "finding": string("What you have found about it in the deliverables, and where."),
                            "met": {"type": "boolean", "description": "Whether this criterion is met."},
                            "gap": string("If it is not met: what exactly is missing or wrong."),
                            "change": string("If it is not met: what to change, and in which file."),
                        },
                        "required": ["criterion", "finding", "met"],
                    },
                },
                "result": {
                    "type": "string",
                    "enum": ["satisfied", "needs_revision", "failed"],
                    "description": "`satisfied` if every criterion is met; `needs_revision` if one is not; \
                        `failed` only if the rubric cannot be applied at all, because it contradicts the task or \
                        has nothing to do with it.",
                },
                "summary": string("One to three sentences: the result and its reason."),
            },
            "required": ["criteria", "result", "summary"],
        },
    })
}

/// Reads the input of the tool.
///
/// # Errors
/// What is wrong with it, for the grader.
pub(super) fn read(input: &str) -> Result<Verdict, String> {
    let Submitted {
        criteria,
        result,
        summary,
    } = serde_json::from_str(input)
        .map_err(|error| format!("The input cannot be read: {error}."))?;
    if criteria.len() > MAX_CRITERIA {
        return Err(format!("There are more than {MAX_CRITERIA} criteria."));
    }
    let blank = |text: &Option<String>| text.as_deref().unwrap_or_default().trim().is_empty();
    let open = criteria.iter().filter(|criterion| !criterion.met).count();
    match result {
        Judgement::Satisfied | Judgement::NeedsRevision if criteria.is_empty() => {
            return Err("There is no criterion: judge every criterion of the rubric.".to_owned());
        }
        Judgement::Satisfied if open > 0 => {
            return Err(format!(
                "`result` is `satisfied`, but {open} of the criteria are not met."
            ));
        }
        Judgement::NeedsRevision if open == 0 => {
            return Err("`result` is `needs_revision`, but every criterion is met.".to_owned());
        }
        Judgement::Failed if summary.trim().is_empty() => {
            return Err("`summary` must say why the rubric cannot be applied.".to_owned());
        }
        _ => {}
    }
    if result == Judgement::NeedsRevision
        && let Some(bare) = criteria
            .iter()
            .find(|criterion| !criterion.met && (blank(&criterion.gap) || blank(&criterion.change)))
    {
        return Err(format!(
            "The criterion {} is not met: give its `gap` and its `change`.",
            json!(short(&bare.criterion, MAX_NAME))
        ));
    }
    Ok(Verdict {
        judgement: result,
        explanation: explanation(&summary, &criteria),
    })
}

fn explanation(summary: &str, criteria: &[Criterion]) -> String {
    let mut text = short(summary, MAX_TEXT);
    for (index, criterion) in criteria.iter().enumerate() {
        text.push_str(match (index, text.is_empty()) {
            (_, true) => "",
            (0, _) => "\n\n",
            _ => "\n",
        });
        let mark = if criterion.met { "met" } else { "not met" };
        let name = short(&criterion.criterion, MAX_NAME);
        let finding = short(&criterion.finding, MAX_TEXT);
        let _ = write!(text, "- [{mark}] {name}: {finding}");
        let notes = [("Gap", &criterion.gap), ("Change", &criterion.change)];
        for (label, note) in notes.into_iter().filter(|_| !criterion.met) {
            let note = short(note.as_deref().unwrap_or_default(), MAX_TEXT);
            if !note.is_empty() {
                let _ = write!(text, "\n  {label}: {note}");
            }
        }
    }
    short(&text, MAX_EXPLANATION)
}

/// Without space around it, and not too long.
fn short(text: &str, limit: usize) -> String {
    let text = text.trim();
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(value: &Value) -> Result<Verdict, String> {
        read(&value.to_string())
    }

    #[test]
    fn the_explanation_names_criterion_gap_and_change() {
        let verdict = verdict(&json!({
            "criteria": [
                {"criterion": "Has a title", "finding": "report.md begins with one", "met": true, "gap": "none"},
                {"criterion": "Has totals", "finding": "no totals in report.md", "met": false,
                 "gap": "The table has no last row", "change": "Add a row `Total` to report.md"},
            ],
            "result": "needs_revision",
            "summary": " One of two criteria is met. ",
        }))
        .unwrap();
        assert_eq!(verdict.judgement, Judgement::NeedsRevision);
        insta::assert_snapshot!(verdict.explanation, @r"
        One of two criteria is met.

        - [met] Has a title: report.md begins with one
        - [not met] Has totals: no totals in report.md
          Gap: The table has no last row
          Change: Add a row `Total` to report.md
        ");
    }

    #[test]
    fn a_verdict_must_agree_with_its_criteria() {
        let met = json!({"criterion": "c", "finding": "f", "met": true});
        let open =
            json!({"criterion": "c", "finding": "f", "met": false, "gap": "g", "change": "h"});
        let bare = json!({"criterion": "c", "finding": "f", "met": false, "gap": "g"});
        let given = |result: &str, criteria: &[&Value]| {
            verdict(&json!({"criteria": criteria, "result": result, "summary": "s"}))
        };
        for (result, criteria, problem) in [
            (
                "satisfied",
                vec![&met, &open],
                "1 of the criteria are not met",
            ),
            ("satisfied", vec![], "no criterion"),
            ("needs_revision", vec![&met], "every criterion is met"),
            (
                "needs_revision",
                vec![&bare],
                "\"c\" is not met: give its `gap` and its `change`",
            ),
            ("excellent", vec![&met], "unknown variant `excellent`"),
            ("max_iterations_reached", vec![&met], "unknown variant"),
        ] {
            let found = given(result, &criteria).unwrap_err();
            assert!(found.contains(problem), "{found}");
        }
        for (result, criteria) in [
            ("satisfied", vec![&met]),
            ("needs_revision", vec![&met, &open]),
            ("failed", vec![]),
            ("failed", vec![&bare]),
        ] {
            assert!(given(result, &criteria).is_ok(), "{result}");
        }
        for broken in ["", "{}", "[]", r#"{"result": "satisfied"}"#] {
            assert!(
                read(broken)
                    .unwrap_err()
                    .starts_with("The input cannot be read")
            );
        }
        assert!(verdict(&json!({"criteria": [], "result": "failed", "summary": " "})).is_err());
    }

    #[test]
    fn explanations_have_a_length() {
        let long = "x".repeat(2 * MAX_TEXT);
        let open =
            json!({"criterion": long, "finding": long, "met": false, "gap": long, "change": long});
        let criteria = vec![open; MAX_CRITERIA];
        let whole = |criteria: &[Value]| {
            verdict(&json!({"criteria": criteria, "result": "needs_revision", "summary": "s"}))
        };
        let found = whole(&criteria).unwrap().explanation;
        assert_eq!(found.chars().count(), MAX_EXPLANATION + 1);
        assert!(
            whole(
                &[
                    criteria,
                    vec![json!({"criterion": "c", "finding": "", "met": true})]
                ]
                .concat()
            )
            .is_err()
        );
    }
}
