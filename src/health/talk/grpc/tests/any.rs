//! Whatever a server sends, there is no panic, and where it is split makes no difference.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;

/// Header fields in HPACK: indexed ones, literals of the fields that matter, and rubbish.
fn block() -> impl Strategy<Value = Vec<u8>> {
    let literal = |name: &str, value: &str| {
        let mut field = vec![0, name.len() as u8];
        field.extend_from_slice(name.as_bytes());
        field.push(value.len() as u8);
        field.extend_from_slice(value.as_bytes());
        field
    };
    let field = prop_oneof![
        4 => Just(vec![0x88]),
        1 => (0x82..=0xc0_u8).prop_map(|index| vec![index]),
        1 => Just(b"\x08\x03103".to_vec()),
        4 => Just(literal("content-type", "application/grpc")),
        4 => (0..20_u8).prop_map(move |code| literal("grpc-status", &(code / 10).to_string())),
        1 => (0..20_u8).prop_map(move |length| literal("content-length", &length.to_string())),
        1 => any::<[u8; 3]>().prop_map(|rubbish| rubbish.to_vec()),
    ];
    proptest::collection::vec(field, 0..4).prop_map(|fields| fields.concat())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(SERVING.to_vec()),
        2 => (0..7_usize).prop_map(|at| SERVING[..at].to_vec()),
        1 => (0..7_usize).prop_map(|at| SERVING[at..].to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..30),
    ]
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = || prop_oneof![8 => Just(1_u8), 1 => 0..5_u8];
    let flags = || prop_oneof![4 => Just(4_u8), 4 => Just(5_u8), 2 => Just(0_u8), 1 => any::<u8>()];
    let data_flags = || prop_oneof![4 => Just(0_u8), 2 => Just(1_u8), 1 => any::<u8>()];
    prop_oneof![
        8 => (flags(), stream(), block()).prop_map(|(f, s, b)| frame(1, f, s, &b)),
        2 => (flags(), stream(), block()).prop_map(|(f, s, b)| frame(9, f, s, &b)),
        8 => (data_flags(), stream(), body()).prop_map(|(f, s, b)| frame(0, f, s, &b)),
        1 => (stream(), any::<[u8; 4]>()).prop_map(|(s, b)| frame(3, 0, s, &b)),
        1 => (stream(), 0..16_u8).prop_map(|(s, b)| frame(3, 0, s, &[0, 0, 0, b])),
        1 => (0..4_u8, 0..16_u8).prop_map(|(s, b)| frame(7, 0, 0, &[0, 0, 0, s, 0, 0, 0, b])),
        1 => (0..8_u8, any::<[u8; 4]>())
            .prop_map(|(name, [a, b, c, d])| frame(4, 0, 0, &[0, name, a, b, c, d])),
        1 => Just(frame(4, 1, 0, b"")),
        1 => any::<[u8; 8]>().prop_map(|b| frame(6, 0, 0, &b)),
        1 => (stream(), any::<[u8; 4]>()).prop_map(|(s, b)| frame(8, 0, s, &b)),
        1 => (stream(), block())
            .prop_map(|(s, b)| frame(5, 4, s, &[&[0, 0, 0, 2][..], &b].concat())),
        1 => (any::<u8>(), any::<u8>(), any::<u8>(), any::<[u8; 5]>())
            .prop_map(|(kind, f, s, b)| frame(kind, f, s, &b)),
    ]
}

proptest! {
    #[test]
    fn any_bytes(bytes in any::<Vec<u8>>()) {
        heard(&[&bytes]);
    }

    #[test]
    fn any_bytes_after_settings(bytes in any::<Vec<u8>>()) {
        heard(&[&frame(4, 0, 0, b""), &bytes]);
    }

    #[test]
    fn any_frames(frames in proptest::collection::vec(any_frame(), 0..8), at: prop::sample::Index) {
        let all = [frame(4, 0, 0, b""), frames.concat()].concat();
        let (first, second) = all.split_at(at.index(all.len()));
        let verdict = heard(&[&all]);
        prop_assert_eq!(heard(&[first, second]), verdict);
        prop_assert_eq!(in_bytes(&all), verdict);
    }

    #[test]
    fn a_good_answer_with_a_wrong_byte(at: prop::sample::Index, byte: u8) {
        let mut answer = say(Grpc::new("a", false), serving).answer;
        let at = at.index(answer.len());
        answer[at] = byte;
        prop_assert_eq!(heard(&[&answer]), in_bytes(&answer));
    }
}
