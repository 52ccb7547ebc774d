//! The checker refuses what it must refuse.

use serde_json::json;

use super::*;

fn turn() -> Vec<Value> {
    let at = |n: u32| format!("2026-01-01T00:00:00.{n:06}Z");
    let message =
        |at: Value| json!({"type": "user.message", "id": "m", "processed_at": at, "content": []});
    let idle = json!({"stop_reason": {"type": "end_turn"}, "stop_details": null});
    let with = |name: &str, id: &str, more: Value| {
        let mut event = json!({"type": name, "id": id, "processed_at": at(1)});
        for (key, value) in more.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    };
    let thread = json!({"session_thread_id": "t", "agent_name": "a"});
    let mut thread_idle = thread.clone();
    thread_idle["stop_reason"] = idle["stop_reason"].clone();
    thread_idle["stop_details"] = Value::Null;
    let usage = json!({"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0});
    vec![
        message(Value::Null),
        with("session.status_running", "1", json!({})),
        with("session.thread_status_running", "2", thread),
        message(json!(at(1))),
        with("span.model_request_start", "s", json!({})),
        with("agent.message", "3", json!({"content": []})),
        with(
            "span.model_request_end",
            "4",
            json!({"model_request_start_id": "s", "is_error": false, "model_usage": usage}),
        ),
        with("session.thread_status_idle", "5", thread_idle),
        with("session.usage", "6", json!({"usage": {}})),
        with("session.status_idle", "7", idle),
    ]
}

#[test]
fn a_turn_is_in_order_and_no_event_of_it_can_be_missing_or_move() {
    check(&turn()).unwrap();
    let length = turn().len();
    for index in 0..length {
        // Without its output a turn is still one; after its idle event nothing need follow.
        let mut missing = turn();
        missing.remove(index);
        assert_eq!(check(&missing).is_ok(), index == 5, "without event {index}");
        for other in index + 1..length {
            let mut moved = turn();
            moved.swap(index, other);
            assert!(check(&moved).is_err(), "{index} and {other} swapped");
        }
    }
    for index in 0..length {
        let mut twice = turn();
        twice.insert(index, twice[index].clone());
        assert!(check(&twice).is_err(), "event {index} twice");
    }
}
