//! Works out what a change comes to, and puts it in force.

use std::ptr::NonNull;

use nginx_sys::{NGX_LOG_NOTICE, ngx_cycle};

use super::answer::{Answer, Keepalive};
use super::mail::Request;
use super::plan::{self, Current, Plan, Refused, Wanted};
use super::route::Dialect;
use crate::conf::check::of_posted;
use crate::conf::initial::configured;
use crate::conf::settings::{Main, Server};
use crate::health::asked::Asked;
use crate::model::{Check, List, Name};
use crate::shm::post::{Base, PostError, Posted};
use crate::shm::zone::Zone;
use crate::upstream::Balancing;

/// Knows the configuration of a worker and the lists in force.
pub struct Clerk {
    main: NonNull<Main>,
    zone: Zone,
}

/// A change that was worked out.
pub struct Planned {
    /// What it was worked out from.
    pub base: Base,
    /// What is to be done.
    pub plan: Plan,
    /// What is to be answered when that is done.
    pub answer: Answer,
}

impl Clerk {
    /// Of a worker of this configuration.
    ///
    /// # Safety
    ///
    /// The clerk is used no longer than `main` lives.
    pub unsafe fn new(main: &Main, zone: Zone) -> Self {
        Self { main: NonNull::from(main), zone }
    }

    fn main(&self) -> &Main {
        // SAFETY: the word of whoever called `new`.
        unsafe { self.main.as_ref() }
    }

    fn server(&self, name: &Name) -> Option<&Server> {
        self.main().upstream(name.as_str()).map(|(_, server)| server)
    }

    /// What a request comes to.
    pub fn plan(&self, name: &Name, request: &Request) -> Result<Planned, Answer> {
        let dialect = request.dialect;
        let base = Base::of(self.zone, name.clone());
        let server = self.server(name);
        // The configuration of this worker may not be the one in force, so both are asked.
        if base.is_followed() || server.is_some_and(|server| server.upsync.get().is_some()) {
            return Err(Answer::follows_consul(dialect, name));
        }
        if let Some(place) = request.keepalive
            && self.keepalive(name).is_none()
        {
            let missing = server.map_or(Keepalive::Template, |_| Keepalive::Block(name));
            return Err(Answer::refused_keepalive(dialect, place, missing));
        }
        if let Some((place, variable)) = request.method.zip(self.unknown_variable(request)) {
            return Err(Answer::unknown_variable(dialect, place, &variable));
        }
        if let Some((place, fault)) = request.check.zip(self.check_fault(name, request)) {
            return Err(Answer::refused_check(dialect, place, &fault));
        }
        let current = self.current(&base, name);
        let is_gone = request.wanted == Wanted::Delete && current.list.is_none();
        let plan = plan::plan(&request.wanted, current, |name| self.group(name))
            .map_err(|why| refusal(dialect, name, why))?;
        let mut answer = match is_gone {
            true => Answer::unknown_upstream(dialect, name),
            false => Answer::success(dialect),
        };
        // Who sets it is told what is in force.
        answer.keepalive = request.keepalive.and_then(|_| self.keepalive(name));
        Ok(Planned { base, plan, answer })
    }

    /// A variable of the key of `hash` that no request has.
    fn unknown_variable(&self, request: &Request) -> Option<String> {
        let Wanted::Replace(_, Some(method), _) = &request.wanted else {
            return None;
        };
        let balancing = Balancing::posted(method.clone(), false);
        // SAFETY: the context is of the `http {}` that this worker runs by.
        unsafe { balancing.unknown_variable(self.main().context.get()?) }
    }

    /// Why servers cannot be checked as the body wants.
    fn check_fault(&self, name: &Name, request: &Request) -> Option<String> {
        let Wanted::Replace(_, _, Some(check)) = &request.wanted else {
            return None;
        };
        let checks = of_posted(self.main(), self.server(name));
        let asked = Asked::posted(Check::clone(check), &checks.base, name.as_str());
        asked.err().map(|error| error.to_string())
    }

    /// The idle connections that each worker keeps for an upstream.
    fn keepalive(&self, name: &Name) -> Option<u32> {
        match self.server(name) {
            Some(server) => server.keepalive_in_force(),
            None => self.main().template_keepalive(),
        }
    }

    fn current(&self, base: &Base, name: &Name) -> Current {
        let block = self.main().upstream(name.as_str()).map(|(nginx, _)| nginx);
        let is_configured = block.is_some();
        let list = match base.posted() {
            Some(posted) => Some(posted.list()).filter(|list| !list.is_empty()),
            None => block.map(configured),
        };
        Current { list, is_configured }
    }

    /// The servers that an upstream of nginx.conf has now.
    fn group(&self, name: &Name) -> Option<List> {
        let (nginx, _) = self.main().upstream(name.as_str())?;
        let base = Base::of(self.zone, name.clone());
        let list = base.posted().or(base.followed_list()).map(|block| block.list());
        Some(list.unwrap_or_else(|| configured(nginx)))
    }

    /// Does what was worked out from `base`, and logs who changed what.
    pub fn publish(
        &self,
        base: &Base,
        plan: &Plan,
        name: &Name,
        client: &str,
    ) -> Result<(), PostError> {
        let posted = match plan {
            Plan::Put(list) => Some(base.publish(list)?),
            Plan::Remove => base.remove().map(|()| None)?,
        };
        if posted.map_or(base.posted().is_some(), |posted| posted.is_new) {
            self.log_change(name, client, plan, posted);
        }
        Ok(())
    }

    fn log_change(&self, name: &Name, client: &str, plan: &Plan, posted: Option<Posted>) {
        let (free, all) = self.zone.pages();
        let pages = format!("{free} of {all} pages free");
        match (plan, posted) {
            (Plan::Put(list), Some(posted)) if !list.is_empty() => {
                let servers = if list.len() == 1 { "server" } else { "servers" };
                let (count, difference) = (list.len(), posted.difference);
                let version = posted.version;
                log(
                    NGX_LOG_NOTICE,
                    format_args!(
                        "upstream \"{name}\": {count} {servers} {difference}, version {version}, {pages}, posted by {client}"
                    ),
                );
            }
            (Plan::Remove, _) if self.server(name).is_some() => {
                log(
                    NGX_LOG_NOTICE,
                    format_args!(
                        "upstream \"{name}\": back to nginx.conf, {pages}, reset by {client}"
                    ),
                );
            }
            _ => log(
                NGX_LOG_NOTICE,
                format_args!("upstream \"{name}\": no servers, {pages}, deleted by {client}"),
            ),
        }
    }
}

fn refusal(dialect: Dialect, name: &Name, why: Refused) -> Answer {
    match why {
        Refused::NoUpstream => Answer::unknown_upstream(dialect, name),
        Refused::NoServer => Answer::unknown_server(dialect),
        Refused::LastServer => Answer::last_server(dialect, name),
        Refused::NotConfigured => Answer::not_configured(dialect, name),
        Refused::NoGroup(place, group) => Answer::unknown_target(dialect, place, &group),
        Refused::EmptyGroup(place, group) => Answer::empty_target(dialect, place, &group),
    }
}

/// Logs to the error log of the cycle in force.
pub fn log(level: u32, message: std::fmt::Arguments<'_>) {
    // SAFETY: a worker has a cycle as long as it lives.
    let log = unsafe { (*ngx_cycle).log };
    ngx::ngx_log_error!(level, log, "upsync: {message}");
}
