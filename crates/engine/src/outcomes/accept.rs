//! Outcomes among a client's events. A rubric that is named by file is read before they are accepted.

use std::borrow::Cow;

use selfsame_store::{AppendError, BlobError, Store};
use selfsame_types::{
    ApiError, FileId, OutcomeId, WorkspaceId, event,
    inbound::InboundEvent,
    outcome::{DefinedOutcome, MAX_RUBRIC, Rubric, TextRubric, UserDefineOutcome},
};

use crate::machine::{Input, InputKind};

/// The longest rubric there may be, in bytes.
const MAX_BYTES: usize = 4 * MAX_RUBRIC;

/// Puts the text of a file in the place of each rubric that names one; `list` is what the request calls its
/// events. What becomes of the file afterwards makes no difference.
///
/// # Errors
/// 400 for files that are not there, have expired, or are no text of a rubric's length.
pub(crate) async fn read_rubrics(
    store: &Store,
    workspace: WorkspaceId,
    list: &str,
    events: &mut [InboundEvent],
) -> Result<(), AppendError> {
    for (index, event) in events.iter_mut().enumerate() {
        if let InboundEvent::UserDefineOutcome(outcome) = event
            && let Rubric::File(file) = outcome.rubric
        {
            let place =
                format!("Invalid user.define_outcome event at {list}[{index}]: rubric.file_id");
            outcome.rubric = Rubric::Text(read(store, workspace, file, &place).await?);
        }
    }
    Ok(())
}

async fn read(
    store: &Store,
    workspace: WorkspaceId,
    file: FileId,
    place: &str,
) -> Result<TextRubric, AppendError> {
    let refuse = |problem: &str| ApiError::invalid(format!("{place}: `{file}` {problem}"));
    let Some(record) = store.file_get(workspace, file).await? else {
        return Err(ApiError::invalid(format!("{place}: there is no file `{file}`")).into());
    };
    let Some(blob) = record.blob else {
        return Err(refuse("has expired").into());
    };
    let bytes = match store.blobs().read(blob, MAX_BYTES).await {
        Ok(bytes) => bytes,
        Err(BlobError::TooLarge(_)) => {
            return Err(refuse(&format!(
                "is too long: a rubric has at most {MAX_RUBRIC} characters"
            ))
            .into());
        }
        Err(error) => {
            tracing::error!(%file, %error, "a file's content cannot be read");
            return Err(ApiError::internal().into());
        }
    };
    let text = text(&bytes).ok_or_else(|| refuse("is not a text; upload the rubric in UTF-8"))?;
    TextRubric::new(text)
        .map_err(|error| refuse(&format!("is no rubric: {}", error.message)).into())
}

/// A new outcome as the machine takes it. Its rubric has been read.
pub(crate) fn input(outcome: &UserDefineOutcome) -> Result<Input, ApiError> {
    let Rubric::Text(rubric) = &outcome.rubric else {
        tracing::error!("an outcome's rubric has not been read");
        return Err(ApiError::internal());
    };
    let defined = DefinedOutcome {
        outcome_id: OutcomeId::new(),
        description: outcome.description.clone(),
        rubric: rubric.clone(),
        max_iterations: outcome.max_iterations,
    };
    Ok(Input {
        fields: event::fields(&defined),
        kind: InputKind::DefineOutcome {
            outcome: defined.outcome_id,
            description: defined.description,
            max_iterations: defined.max_iterations,
        },
    })
}

/// The text of a file, without a byte order mark.
fn text(bytes: &[u8]) -> Option<String> {
    let text = encoding_rs::UTF_8.decode_without_bom_handling_and_without_replacement(
        bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes),
    );
    text.map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn texts_are_utf_8() {
        for (bytes, expected) in [
            (&b"- one"[..], Some("- one")),
            (b"\xef\xbb\xbf- one", Some("- one")),
            (b"", Some("")),
            (b"\xff\xfe-\0", None),
        ] {
            assert_eq!(text(bytes).as_deref(), expected);
        }
    }
}
