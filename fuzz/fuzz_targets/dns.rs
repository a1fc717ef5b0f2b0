//! Queries of guests, and name servers' answers to them.
#![no_main]

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use warren_network::fuzzing::{answer_belongs, answer_query};

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    if let Some(answer) = answer_query(bytes)
        && let Ok(message) = Message::from_vec(&answer)
    {
        assert_eq!(answer[..2], bytes[..2], "the id is the query's");
        assert_eq!(
            message.metadata.message_type,
            hickory_proto::op::MessageType::Response
        );
    }
    let (query, answer) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let id = answer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    if let Some(passed_on) = answer_belongs(answer, query, id) {
        assert!(passed_on.len() <= answer.len().max(512));
    }
});
