//! Texts of tools that are too long to show: the whole goes into a file of the sandbox, the model gets the
//! beginning and the path.

use selfsame_sandbox::Put;

use crate::{Inner, web::Caller};

/// A text with more characters than this is not returned whole, as with every tool.
pub(crate) const MAX_CHARS: usize = 100_000;
/// How much of the beginning a preview shows, in characters.
const PREVIEW: usize = 12_000;
/// Where the whole of a long text is put.
const TOOL_OUTPUTS: &str = "/mnt/session/tool-outputs";

/// Puts a long text into the sandbox, if there is one, and answers what the model is to see of it.
pub(crate) async fn shorten(
    inner: &Inner,
    caller: Caller,
    has_sandbox: bool,
    text: String,
) -> String {
    if text.len() <= MAX_CHARS || text.chars().count() <= MAX_CHARS {
        return text;
    }
    if has_sandbox {
        let path = format!("{TOOL_OUTPUTS}/{}.txt", caller.call);
        match put(inner, caller, &path, &text).await {
            Ok(()) => {
                return format!(
                    "{}\n\n[output truncated: it has {} characters; all of it is in {path}]",
                    start(&text, PREVIEW),
                    text.chars().count(),
                );
            }
            Err(error) => {
                tracing::warn!(session = %caller.session, %error, "a long text could not be kept");
            }
        }
    }
    format!(
        "{}\n\n[output truncated at {MAX_CHARS} characters]",
        start(&text, MAX_CHARS)
    )
}

async fn put(
    inner: &Inner,
    caller: Caller,
    path: &str,
    text: &str,
) -> Result<(), crate::sandboxes::AcquireError> {
    let sandbox = inner
        .sandboxes
        .acquire(caller.session, caller.epoch)
        .await?;
    let file = Put {
        path: path.to_owned(),
        mode: 0o644,
        size: text.len() as u64,
    };
    sandbox.put(&file, text.as_bytes()).await?;
    Ok(())
}

/// The first `chars` characters.
pub(crate) fn start(text: &str, chars: usize) -> &str {
    let end = text.char_indices().nth(chars);
    end.map_or(text, |(end, _)| &text[..end])
}
