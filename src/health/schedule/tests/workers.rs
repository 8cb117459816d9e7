//! Workers that share the times when servers are due, as they do in shared memory.
#![forbid(unsafe_code)]

use super::*;

type Key = (u64, u32);

#[derive(Clone, Copy)]
struct UnderWay {
    key: Key,
    due: u64,
    end: u64,
}

#[derive(Default)]
struct Worker {
    number: u64,
    schedule: Schedule<Key>,
    checks: Vec<UnderWay>,
    stopped: bool,
}

#[derive(Debug)]
struct Begun {
    at: u64,
    end: u64,
    worker: u64,
}

struct Instance {
    now: u64,
    interval: u32,
    timeout: u32,
    workers: Vec<Worker>,
    /// What stands in shared memory.
    due: BTreeMap<Key, u64>,
    /// The checks of each server.
    begun: BTreeMap<Key, Vec<Begun>>,
    random: u64,
}

impl Instance {
    fn new(workers: u64, servers: u64, interval: u32, timeout: u32) -> Self {
        let worker = |number| Worker { number, ..Worker::default() };
        let mut instance = Self {
            now: 1_000_000,
            interval,
            timeout,
            workers: (0..workers).map(worker).collect(),
            due: BTreeMap::new(),
            begun: BTreeMap::new(),
            random: 0,
        };
        instance.list(&(0..servers).map(|slot| (slot * 256, 1)).collect::<Vec<_>>());
        instance
    }

    fn random(&mut self) -> u64 {
        self.random += 1;
        mixed(self.random)
    }

    /// Another list comes into force.
    fn list(&mut self, servers: &[Key]) {
        let before = std::mem::take(&mut self.due);
        for &key in servers {
            let first = first_due(self.now, self.interval, self.random());
            self.due.insert(key, before.get(&key).copied().unwrap_or(first));
        }
        for worker in &mut self.workers {
            keep_only(&mut worker.schedule, |key| self.due.contains_key(&key));
            self.due.keys().for_each(|&key| worker.schedule.add(key, self.now));
        }
    }

    fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            for worker in 0..self.workers.len() {
                if !self.workers[worker].stopped {
                    self.end(worker);
                    self.look(worker);
                }
            }
            self.now += 1;
        }
    }

    fn end(&mut self, worker: usize) {
        let ended = |check: &mut UnderWay| check.end <= self.now;
        let ended: Vec<_> = self.workers[worker].checks.extract_if(.., ended).collect();
        for check in ended {
            if let Some(due) = self.due.get_mut(&check.key) {
                *due = due_after(check.due, self.now, self.interval);
            }
            self.look_later(worker, check.key);
        }
    }

    fn look(&mut self, worker: usize) {
        while let Some(key) = self.workers[worker].schedule.pop(self.now) {
            if self.when(worker, key) > self.now {
                self.look_later(worker, key);
            } else {
                self.begin(worker, key);
            }
        }
    }

    /// When this worker is to look at a server.
    fn when(&self, worker: usize, key: Key) -> u64 {
        let mine = preferred(key.0, self.workers.len() as u64) == self.workers[worker].number;
        self.due[&key] + if mine { 0 } else { grace(self.interval) }
    }

    fn look_later(&mut self, worker: usize, key: Key) {
        if self.due.contains_key(&key) {
            let when = self.when(worker, key);
            self.workers[worker].schedule.again(key, when);
        }
    }

    fn begin(&mut self, worker: usize, key: Key) {
        let due = self.due[&key];
        self.due.insert(key, lease(due, self.now, self.interval, self.timeout));
        let end = self.now + self.random() % u64::from(self.timeout) + 1;
        let worker = &mut self.workers[worker];
        worker.checks.push(UnderWay { key, due, end });
        let begun = Begun { at: self.now, end, worker: worker.number };
        self.begun.entry(key).or_default().push(begun);
    }

    /// A worker is killed, or takes the place of one that was.
    fn stop(&mut self, worker: usize, stopped: bool) {
        let number = self.workers[worker].number;
        self.workers[worker] = Worker { number, stopped, ..Worker::default() };
        let known = self.due.keys();
        known.for_each(|&key| self.workers[worker].schedule.add(key, self.now));
    }

    /// Each interval has one check of a server, which begins up to `late` after it is due.
    fn assert_one_each_interval(&self, key: Key, late: u64) {
        let (checks, interval) = (&self.begun[&key], u64::from(self.interval));
        for (check, due) in checks.iter().zip((checks[0].at..).step_by(interval as usize)) {
            assert!(due <= check.at && check.at <= due + late, "{key:?}: {checks:?}");
        }
        let last = checks[checks.len() - 1].at;
        assert!(last + interval + late >= self.now, "{key:?}: {checks:?}");
    }
}

#[test]
fn each_server_has_one_check_in_an_interval() {
    for workers in [1, 2, 5] {
        let mut instance = Instance::new(workers, 100, 1000, 600);
        instance.run(10_000);
        assert_eq!(instance.begun.len(), 100);
        for (&key, checks) in &instance.begun {
            instance.assert_one_each_interval(key, 0);
            let mine = preferred(key.0, workers);
            assert!(checks.iter().all(|check| check.worker == mine));
        }
    }
}

#[test]
fn a_worker_that_is_killed_is_replaced_by_the_others() {
    for killed in [5000, 5333, 5777] {
        let mut instance = Instance::new(3, 100, 1000, 600);
        instance.run(killed);
        instance.stop(1, true);
        instance.run(6000);
        instance.stop(1, false);
        instance.run(6000);
        for &key in instance.due.keys() {
            instance.assert_one_each_interval(key, grace(1000));
        }
    }
}

#[test]
fn servers_that_do_not_answer_are_checked_one_at_a_time() {
    for (interval, timeout) in [(100, 100), (100, 1000), (70, 110)] {
        let mut instance = Instance::new(3, 50, interval, timeout);
        instance.run(20_000);
        for (key, checks) in &instance.begun {
            for (check, next) in checks.iter().zip(&checks[1..]) {
                let latest = check.end.max(check.at + u64::from(interval));
                assert!((check.end..=latest).contains(&next.at), "{key:?}: {checks:?}");
            }
        }
    }
}

#[test]
fn lists_that_come_and_go_move_nobody_who_stays() {
    let mut instance = Instance::new(4, 50, 1000, 600);
    let staying: Vec<_> = instance.due.keys().copied().collect();
    for generation in 2..502 {
        let others = 50..50 + instance.random() % 50;
        let others = others.map(|slot| (slot * 256, generation));
        instance.list(&staying.iter().copied().chain(others).collect::<Vec<_>>());
        instance.run(20);
    }
    let end = instance.now;
    instance.list(&staying);
    instance.run(3000);
    for (&key, checks) in &instance.begun {
        if staying.contains(&key) {
            instance.assert_one_each_interval(key, 0);
        } else {
            assert!(checks.iter().all(|check| check.at < end));
        }
    }
}
