#![forbid(unsafe_code)]

use super::*;

const TWO_FAILS: Parameters = Parameters { max_fails: 2, fail_timeout: 10, ..Parameters::NGINX };

#[test]
fn one_slot_is_four_cache_lines() {
    assert_eq!(std::mem::size_of::<Slot>(), 256);
}

#[test]
fn max_conns_is_never_exceeded() {
    let slot = Slot::default();
    assert!(slot.connect(0, 2) && slot.connect(0, 2) && !slot.connect(0, 2));
    slot.disconnect(0);
    assert!(slot.connect(0, 2));
    assert_eq!(slot.connections(0), Some(2));
}

#[test]
fn a_late_decrement_does_not_hit_the_next_owner() {
    let slot = Slot::default();
    assert!(slot.connect(0, 0));
    slot.retire();
    assert!(slot.connect(1, 0));
    slot.disconnect(0);
    assert_eq!((slot.connections(0), slot.connections(1)), (None, Some(1)));
    assert!(!slot.connect(0, 0) && !slot.admits(0, &TWO_FAILS, 0));
    assert_eq!(slot.failed(0, &TWO_FAILS, 5), Failure::Counted);
    assert!(slot.admits(1, &TWO_FAILS, 5));
}

#[test]
fn a_retirement_that_was_cut_short_is_made_good_by_the_next() {
    let slot = Slot::default();
    slot.fails.begin(1);
    slot.retire();
    let generation = slot.generation();
    assert!(slot.admits(generation, &TWO_FAILS, 0) && slot.connect(generation, 0));
}

#[test]
fn more_given_back_than_taken_stops_at_none() {
    let slot = Slot::default();
    slot.disconnect(0);
    assert_eq!(slot.connections(0), Some(0));
}

#[test]
fn fails_take_it_out_and_one_request_tries_it_after_the_time() {
    let slot = Slot::default();
    assert_eq!(slot.failed(0, &TWO_FAILS, 100), Failure::Counted);
    assert!(slot.admits(0, &TWO_FAILS, 100));
    assert_eq!(slot.failed(0, &TWO_FAILS, 100), Failure::Disabled);
    assert!(!slot.admits(0, &TWO_FAILS, 110));
    assert!(slot.admits(0, &TWO_FAILS, 111), "a chance after fail_timeout");
    assert!(!slot.admits(0, &TWO_FAILS, 111), "but for one request");
    slot.succeeded(0, &TWO_FAILS, 0);
    assert!(slot.admits(0, &TWO_FAILS, 111) && slot.admits(0, &TWO_FAILS, 111));
}

#[test]
fn an_attempt_older_than_the_failure_does_not_clear_it() {
    let slot = Slot::default();
    slot.failed(0, &TWO_FAILS, 100);
    slot.failed(0, &TWO_FAILS, 100);
    slot.succeeded(0, &TWO_FAILS, 0);
    assert!(!slot.admits(0, &TWO_FAILS, 105));
}

#[test]
fn a_fail_below_the_limit_is_forgotten_by_a_good_attempt_after_the_time() {
    let slot = Slot::default();
    slot.failed(0, &TWO_FAILS, 100);
    assert!(slot.admits(0, &TWO_FAILS, 111));
    slot.succeeded(0, &TWO_FAILS, 0);
    assert_eq!(slot.failed(0, &TWO_FAILS, 112), Failure::Counted);
}

#[test]
fn max_fails_of_0_never_takes_it_out() {
    let slot = Slot::default();
    let never = Parameters { max_fails: 0, ..Parameters::NGINX };
    for _ in 0..10 {
        assert_eq!(slot.failed(0, &never, 1), Failure::Counted);
    }
    assert!(slot.admits(0, &never, 1));
}

#[test]
fn a_server_that_was_out_grows_its_share_anew() {
    let slow = Parameters { slow_start: 10_000, ..TWO_FAILS };
    let slot = Slot::default();
    assert_eq!(slot.share(&slow, 5), 1 << 32, "one that was always there has all of it");
    slot.failed(0, &slow, 100);
    slot.failed(0, &slow, 100);
    assert!(slot.admits(0, &slow, 111));
    slot.succeeded(0, &slow, 50_000);
    assert_eq!(slot.share(&slow, 50_000), (1 << 32) / 100);
    assert_eq!(slot.share(&slow, 52_500), 1 << 30);
    assert_eq!(slot.share(&slow, 60_000), 1 << 32);
    assert_eq!(slot.share(&TWO_FAILS, 50_000), 1 << 32, "but not without slow_start");
}

#[test]
fn one_fail_of_two_does_not_make_it_grow() {
    let slow = Parameters { slow_start: 10_000, ..TWO_FAILS };
    let slot = Slot::default();
    slot.failed(0, &slow, 100);
    assert!(slot.admits(0, &slow, 111));
    slot.succeeded(0, &slow, 50_000);
    assert_eq!((slot.fails(0), slot.share(&slow, 50_000)), (0, 1 << 32));
}

#[test]
fn times_are_averaged_and_grow_old() {
    let slot = Slot::default();
    let busy = |slot: &Slot, now| slot.busy_for(0, &TWO_FAILS, Moment::Header, now);
    assert_eq!(busy(&slot, 0), TIME_STEP, "one that has not answered yet is a fast one");
    slot.timed(0, Some(100), 400, 1000);
    assert_eq!((slot.average(0, Moment::Header), slot.average(0, Moment::LastByte)), (100, 400));
    for _ in 0..200 {
        slot.timed(0, Some(200), 400, 1000);
    }
    assert_eq!(slot.average(0, Moment::Header), 199);
    assert_eq!(busy(&slot, 1000), 200);
    assert!(slot.connect(0, 0));
    assert_eq!(busy(&slot, 1000), 400, "twice as long with a request before it");
    assert_eq!(busy(&slot, 1011), 200, "half of it after fail_timeout");
    assert_eq!(busy(&slot, i64::MAX), 2 * TIME_STEP);
    slot.retire();
    slot.timed(0, Some(1), 1, 1);
    assert_eq!(slot.average(1, Moment::Header), 0);
}

#[test]
fn very_slow_servers_are_equally_slow() {
    let slot = Slot::default();
    slot.timed(0, None, u64::MAX, 0);
    assert_eq!(slot.busy_for(0, &TWO_FAILS, Moment::LastByte, 0), TIME_MAX);
    assert_eq!(slot.average(0, Moment::Header), 0);
}
