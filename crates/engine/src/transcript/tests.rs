use selfsame_types::Timestamp;
use serde_json::{Value, json};

use super::*;

/// Rows of one thread, in order.
fn transcript(events: &[(EventType, Value)]) -> Transcript {
    let thread = ThreadId::new();
    let rows: Vec<_> = (1..)
        .zip(events)
        .map(|(seq, (event_type, body))| Row {
            seq,
            id: EventId::new(),
            thread,
            on_session: true,
            event_type: *event_type,
            processed_at: Some(Timestamp::from_micros(seq)),
            body: body.to_string().into(),
            private: None,
        })
        .collect();
    let mut transcript = Transcript::default();
    transcript.extend(&rows).unwrap();
    transcript
}

fn define(description: &str) -> (EventType, Value) {
    let body = json!({
        "outcome_id": selfsame_types::OutcomeId::new(), "description": description,
        "rubric": {"type": "text", "content": "RUBRIC"}, "max_iterations": 3,
    });
    (EventType::UserDefineOutcome, body)
}

fn says(text: &str) -> (EventType, Value) {
    let body = json!({"content": [{"type": "text", "text": text}]});
    (EventType::AgentMessage, body)
}

fn evaluated(result: &str) -> (EventType, Value) {
    let body = json!({"result": result, "iteration": 0, "explanation": "see https://a.test/x"});
    (EventType::SpanOutcomeEvaluationEnd, body)
}

const START: (EventType, Value) = (EventType::SpanModelRequestStart, Value::Null);
const END: (EventType, Value) = (EventType::SpanModelRequestEnd, Value::Null);

fn roles(transcript: &Transcript) -> Vec<(String, Vec<String>)> {
    let messages = transcript.messages();
    let read = messages
        .iter()
        .map(|message| serde_json::from_str::<Value>(message.get()).unwrap());
    read.map(|message| {
        let blocks = message["content"].as_array().unwrap();
        let first = |block: &Value| {
            block["text"]
                .as_str()
                .unwrap()
                .lines()
                .next()
                .map(str::to_owned)
        };
        let texts = blocks.iter().filter_map(first).collect();
        (message["role"].as_str().unwrap().to_owned(), texts)
    })
    .collect()
}

#[test]
fn an_outcome_stands_where_the_model_has_first_seen_it() {
    let user = (
        EventType::UserMessage,
        json!({"content": [{"type": "text", "text": "hello"}]}),
    );
    // Defined while the model answers something else.
    let events = [user, START, define("D"), says("hi"), END];
    let before = transcript(&events);
    assert_eq!(
        roles(&before),
        [
            ("user".to_owned(), vec!["hello".to_owned()]),
            ("assistant".to_owned(), vec!["hi".to_owned()]),
        ]
    );
    let after = transcript(&[&events[..], &[START]].concat());
    assert_eq!(roles(&after)[2], ("user".to_owned(), vec!["D".to_owned()]));
    assert!(!after.messages()[2].get().contains("RUBRIC"));
}

#[test]
fn what_a_grader_found_is_told_and_is_nobodys_word() {
    let events = [define("https://b.test/"), START, says("done"), END];
    let worked = transcript(&events);
    assert_eq!(worked.last_message().as_deref(), Some("done"));
    for (result, told) in [
        ("needs_revision", true),
        ("max_iterations_reached", true),
        ("satisfied", true),
        ("failed", true),
        ("interrupted", false),
    ] {
        let transcript = transcript(&[&events[..], &[evaluated(result), START]].concat());
        let messages = transcript.messages();
        assert_eq!(messages.len(), if told { 3 } else { 2 }, "{result}");
        let mut seen = String::new();
        transcript.read(|origin, text| {
            assert_eq!(*origin, Origin::User);
            seen.push_str(text);
        });
        assert!(seen.contains("https://b.test/"), "the task is the user's");
        assert!(!seen.contains("https://a.test/"), "the explanation is not");
    }
}
