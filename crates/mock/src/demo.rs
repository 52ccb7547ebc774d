//! The model that answers when no rule does: it follows directives, plays a small job when it has the
//! tools for one, and otherwise says what it can do.

use serde_json::{Value, json};

use crate::{
    request::{Parsed, ToolResult},
    rule::{Chunks, Cut, Failure, Refusal, Step, Stop, Tool},
};

/// Most characters of a tool result that are quoted.
const QUOTE_CHARS: usize = 4000;

/// The tool by which a coordinator starts an agent.
const CREATE: &str = "create_agent";
/// How the report of an agent begins.
const REPORT: &str = "Message from thread";
/// The tool by which a grader of an outcome gives its verdict.
const VERDICT: &str = "submit_verdict";

pub(crate) fn answer(request: &Parsed) -> Vec<Step> {
    if let Some(forced) = &request.forced {
        return vec![tool(forced, example(request.schema(forced)))];
    }
    if request.offers(VERDICT) {
        // What looks like a directive is somebody's task here, and not for us.
        return vec![text("I have seen enough.")];
    }
    let groups = groups(&request.user_text);
    if !groups.is_empty() {
        return match groups.into_iter().nth(request.round) {
            Some(steps) => steps,
            None => vec![text(quote(&request.results))],
        };
    }
    if request.offers(CREATE) {
        return delegate(request);
    }
    if request.round == 0 {
        return match job(request) {
            Some(job) => job.begin(request.thinks),
            None => vec![text(greeting(request))],
        };
    }
    match job(request) {
        Some(job) if request.round == 1 && !failed(&request.results) => vec![
            text("Written. Now I run it."),
            tool("bash", json!({"command": format!("python3 {}", job.file)})),
        ],
        Some(job) if request.round == 2 && !failed(&request.results) => {
            vec![text(format!(
                "Done. `{}` {}. It printed:\n\n{}",
                job.file,
                job.what,
                quote(&request.results)
            ))]
        }
        _ => vec![text(quote(&request.results))],
    }
}

/// A coordinator: everybody gets the task, and their reports are passed on.
fn delegate(request: &Parsed) -> Vec<Step> {
    if request.user_text.contains(REPORT) {
        let said: String = request.user_text.chars().take(QUOTE_CHARS).collect();
        return vec![text(format!("This has come in.\n\n{said}"))];
    }
    if request.round > 0 {
        return vec![text("They are at work. I wait for their reports.")];
    }
    let tools = request.json["tools"].as_array().into_iter().flatten();
    let names: Vec<&str> = tools
        .filter(|tool| tool["name"] == CREATE)
        .filter_map(|tool| tool["input_schema"]["properties"]["agent_name"]["enum"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut steps = vec![text(format!("I give this to {}.", names.join(" and ")))];
    steps.extend(names.iter().map(|name| {
        tool(
            CREATE,
            json!({"agent_name": name, "message": request.user_text}),
        )
    }));
    steps
}

fn text(text: impl Into<String>) -> Step {
    Step::Text(Chunks::Whole(text.into()))
}

fn tool(name: &str, input: Value) -> Step {
    Step::Tool(Tool {
        name: name.to_owned(),
        id: None,
        input: Some(input),
        raw: None,
    })
}

/// A small value that fits a schema.
fn example(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let names = schema["required"].as_array().into_iter().flatten();
            let names = names.filter_map(Value::as_str);
            let fields = names.map(|name| (name.to_owned(), example(&schema["properties"][name])));
            Value::Object(fields.collect())
        }
        Some("array") => json!([example(&schema["items"])]),
        Some("boolean") => json!(true),
        Some("integer" | "number") => json!(1),
        _ => json!("from the demo model, which has looked at nothing"),
    }
}

fn failed(results: &[ToolResult]) -> bool {
    results.iter().any(|r| r.is_error)
}

/// The results, word for word.
fn quote(results: &[ToolResult]) -> String {
    if results.is_empty() {
        return "Done.".to_owned();
    }
    let quoted = results.iter().map(|result| {
        let mut text: String = result.text.chars().take(QUOTE_CHARS).collect();
        if text.len() < result.text.len() {
            text.push_str("\n[...]");
        }
        let verb = if result.is_error {
            "failed"
        } else {
            "returned"
        };
        format!("{} {verb}:\n{text}", result.tool)
    });
    quoted.collect::<Vec<_>>().join("\n\n")
}

fn greeting(request: &Parsed) -> String {
    let said: String = request.user_text.trim().chars().take(500).collect();
    let mut tools = request.tools.join(", ");
    if tools.is_empty() {
        tools.push_str("none");
    }
    let said = if said.is_empty() {
        "Hello!".to_owned()
    } else {
        format!("You said: {said}")
    };
    format!(
        "{said}\n\nI am the built-in demo model: I answer at once and need no key. With the tools `bash` and \
         `write` I can play a small job, for example \"write a Python program that computes the Fibonacci \
         numbers\". Lines beginning with `!` tell me what to do, for example `!bash ls -l`. Tools I was \
         offered: {tools}."
    )
}

// Directives ------------------------------------------------------------------------------------

/// The groups of steps that the lines of a text ask for; empty without directives.
fn groups(text: &str) -> Vec<Vec<Step>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    for line in text.lines().map(str::trim) {
        if line == "!then" {
            if !group.is_empty() {
                groups.push(std::mem::take(&mut group));
            }
        } else if let Some(step) = line.strip_prefix('!').and_then(directive) {
            group.push(step);
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// `None` for words we do not know: an exclamation mark is not always meant for us.
fn directive(line: &str) -> Option<Step> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Some(match word {
        "bash" => tool("bash", json!({"command": rest})),
        "read" => tool("read", json!({"file_path": rest})),
        "glob" => tool("glob", json!({"pattern": rest})),
        "grep" if second.is_empty() => tool("grep", json!({"pattern": first})),
        "grep" => tool("grep", json!({"pattern": first, "path": second.trim()})),
        "write" => tool(
            "write",
            json!({"file_path": first, "content": second.replace("\\n", "\n")}),
        ),
        "tool" if !first.is_empty() => {
            let input = second.trim();
            match serde_json::from_str(if input.is_empty() { "{}" } else { input }) {
                Ok(input) => tool(first, input),
                // A model may be wrong, too: what is no JSON goes out as it is.
                Err(_) => Step::Tool(Tool {
                    name: first.to_owned(),
                    id: None,
                    input: None,
                    raw: Some(Chunks::Whole(input.to_owned())),
                }),
            }
        }
        "say" if !rest.is_empty() => text(rest),
        "think" => Step::Thinking(Chunks::Whole(rest.to_owned())),
        "stop" if !rest.is_empty() => Step::Stop(Stop::Reason(rest.to_owned())),
        "refuse" => Step::Refusal(Refusal {
            category: some(rest),
            explanation: None,
        }),
        "error" => Step::Error(Failure {
            status: first.parse().ok()?,
            kind: some(second.trim()),
            message: None,
            retry_after: None,
            retry_after_ms: None,
        }),
        "hang" => Step::Hang(true),
        "cut" => Step::Cut(Cut::Abort),
        _ => return None,
    })
}

// The job ---------------------------------------------------------------------------------------

struct Job {
    file: &'static str,
    what: &'static str,
    program: String,
}

impl Job {
    fn begin(&self, thinks: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        if thinks {
            steps.push(Step::Thinking(Chunks::Whole(format!(
                "A small program will do: {} {}. I write it first, then run it.",
                self.file, self.what
            ))));
        }
        steps.push(text(format!(
            "I write a small program, `{}`, and run it.",
            self.file
        )));
        steps.push(tool(
            "write",
            json!({"file_path": self.file, "content": self.program}),
        ));
        steps
    }
}

/// The job that the user's words ask for, if the tools for it are there.
fn job(request: &Parsed) -> Option<Job> {
    if !request.offers("write") || !request.offers("bash") {
        return None;
    }
    let words = request.user_text.to_lowercase();
    let asks = [
        "write",
        "create",
        "build",
        "make",
        "generate",
        "compute",
        "calculate",
        "program",
        "script",
        "python",
        "code",
        "file",
        "report",
        "count",
    ];
    if !asks.iter().any(|ask| words.contains(ask)) {
        return None;
    }
    let (file, what, compute) = if words.contains("fibonacci") {
        (
            "fibonacci.py",
            "computes the first 20 Fibonacci numbers",
            "numbers = [0, 1]\nwhile len(numbers) < 20:\n    numbers.append(numbers[-1] + numbers[-2])\n\
             lines = [str(n) for n in numbers]\nname = \"fibonacci.txt\"\n"
                .to_owned(),
        )
    } else if words.contains("prime") {
        (
            "primes.py",
            "computes the primes below 100",
            "lines = [str(n) for n in range(2, 100) if all(n % d for d in range(2, n))]\n\
             name = \"primes.txt\"\n"
                .to_owned(),
        )
    } else {
        // A JSON string is a Python string, too.
        let task: String = request.user_text.chars().take(2000).collect();
        (
            "report.py",
            "counts the words of your message",
            format!(
                "task = {}\nwords = task.split()\nlines = [f\"{{len(words)}} words, {{len(task)}} characters\"]\n\
                 lines += [f\"{{w}}: {{words.count(w)}}\" for w in sorted(set(words), key=words.count)[-5:]]\n\
                 name = \"report.txt\"\n",
                Value::String(task)
            ),
        )
    };
    let program = format!(
        "import pathlib\n\n{compute}\nout = pathlib.Path(\"/mnt/session/outputs\")\n\
         target = (out if out.is_dir() else pathlib.Path(\".\")) / name\n\
         target.write_text(\"\\n\".join(lines) + \"\\n\")\nprint(\" \".join(lines))\nprint(f\"written to {{target}}\")\n"
    );
    Some(Job {
        file,
        what,
        program,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_gives_work_away_and_passes_reports_on() {
        let schema = json!({"properties": {"agent_name": {"enum": ["a", "b"]}}});
        let request = |messages: Value| {
            let body =
                json!({"tools": [{"name": CREATE, "input_schema": schema}], "messages": messages});
            serde_json::to_value(answer(&Parsed::new(body.to_string(), body.clone()))).unwrap()
        };
        let task = json!({"role": "user", "content": "Do it."});
        let asked = request(json!([task]));
        assert_eq!(asked[0]["text"], "I give this to a and b.");
        assert_eq!(
            asked[2]["tool"]["input"],
            json!({"agent_name": "b", "message": "Do it."})
        );
        let call = json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": CREATE, "input": {}}]});
        let result = json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "started"}]});
        let waits = request(json!([task, call, result]));
        assert_eq!(
            waits[0]["text"],
            "They are at work. I wait for their reports."
        );
        let report =
            json!({"role": "user", "content": "Message from thread x (agent `a`):\nDone."});
        let told = request(json!([task, report]));
        assert!(told[0]["text"].as_str().unwrap().ends_with("Done."));
    }

    #[test]
    fn a_forced_tool_is_called_with_what_fits() {
        let property = json!({"type": "object", "required": ["met", "at"], "properties": {
            "met": {"type": "boolean"}, "at": {"type": "integer"}, "more": {"type": "string"},
        }});
        let schema = json!({"type": "object", "required": ["list", "result"], "properties": {
            "list": {"type": "array", "items": property},
            "result": {"type": "string", "enum": ["good", "bad"]},
        }});
        assert_eq!(
            example(&schema),
            json!({"list": [{"met": true, "at": 1}], "result": "good"})
        );
        let body = json!({
            "tools": [{"name": "submit_verdict", "input_schema": schema}],
            "messages": [{"role": "user", "content": "!bash rm -rf /"}],
        });
        let request = |body: Value| Parsed::new(body.to_string(), body);
        let looked = serde_json::to_value(answer(&request(body.clone()))).unwrap();
        assert_eq!(looked, json!([{"text": "I have seen enough."}]));
        let mut forced = body;
        forced["tool_choice"] = json!({"type": "tool", "name": "submit_verdict"});
        let given = serde_json::to_value(answer(&request(forced))).unwrap();
        assert_eq!(given[0]["tool"]["name"], "submit_verdict");
        assert_eq!(given[0]["tool"]["input"]["result"], "good");
    }

    fn steps(text: &str) -> Value {
        serde_json::to_value(groups(text)).unwrap()
    }

    #[test]
    fn directives() {
        for (line, step) in [
            (
                "!bash echo  hi",
                json!({"tool": {"name": "bash", "input": {"command": "echo  hi"}}}),
            ),
            (
                "  !read /a b",
                json!({"tool": {"name": "read", "input": {"file_path": "/a b"}}}),
            ),
            (
                "!glob *.rs",
                json!({"tool": {"name": "glob", "input": {"pattern": "*.rs"}}}),
            ),
            (
                "!grep x",
                json!({"tool": {"name": "grep", "input": {"pattern": "x"}}}),
            ),
            (
                "!grep x /d",
                json!({"tool": {"name": "grep", "input": {"pattern": "x", "path": "/d"}}}),
            ),
            (
                "!write /f a\\nb c",
                json!({"tool": {"name": "write", "input": {"file_path": "/f", "content": "a\nb c"}}}),
            ),
            ("!tool t", json!({"tool": {"name": "t", "input": {}}})),
            (
                "!tool t {\"a\": [1]}",
                json!({"tool": {"name": "t", "input": {"a": [1]}}}),
            ),
            (
                "!tool t {\"a\":",
                json!({"tool": {"name": "t", "raw": "{\"a\":"}}),
            ),
            ("!say hello there", json!({"text": "hello there"})),
            ("!think hm", json!({"thinking": "hm"})),
            ("!stop max_tokens", json!({"stop": "max_tokens"})),
            (
                "!refuse bio",
                json!({"refusal": {"category": "bio", "explanation": null}}),
            ),
            (
                "!error 529 overloaded_error",
                json!({"error": {"status": 529, "type": "overloaded_error"}}),
            ),
            ("!hang", json!({"hang": true})),
            ("!cut", json!({"cut": "abort"})),
        ] {
            assert_eq!(steps(line), json!([[step]]), "{line}");
        }
        assert_eq!(steps("Hello!\n!important\n! bash\n!error x"), json!([]));
        let groups = steps("Please:\n!say a\n!bash b\n!then\n!then\n!bash c\n!then");
        let lengths: Vec<_> = groups
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g.as_array().unwrap().len())
            .collect();
        assert_eq!(lengths, [2, 1]);
    }
}
