//! The checks of an upstream, ready to be made.

use std::rc::Rc;

use nginx_sys::ngx_conf_t;
use thiserror::Error;

use super::talk::http::BodyRule;
#[cfg(nginx_http_ssl)]
use super::tls::Context;
use crate::model::Printable;
use crate::model::check::{Check, Kind};
use crate::ngx::regex::Regex;

/// What `check_ssl_trusted_certificate`, `check_ssl_certificate` and `check_ssl_certificate_key` name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificates of those who are trusted.
    pub trusted: Option<String>,
    /// The certificate that the server is shown.
    pub certificate: Option<String>,
    /// Its key.
    pub key: Option<String>,
}

impl Files {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why checks cannot be made as they are asked for.
#[derive(Debug, Error)]
pub enum AskError {
    /// PCRE does not take the expression.
    #[error("invalid regular expression in \"check_http_expect_body\": {}", Printable(.0))]
    Regex(String),
    /// nginx was built without.
    #[error("\"type={0}\" in \"check\" needs an nginx with TLS, this one has none")]
    NoTls(&'static str),
    /// OpenSSL has none.
    #[error("no memory for TLS")]
    Memory,
    /// A file cannot be used; nginx has said why.
    #[error("the files of \"check_ssl_…\" cannot be used, see above")]
    Files,
}

/// How the servers of one upstream are checked.
#[derive(Debug)]
pub struct Asked {
    /// What the directives say.
    pub check: Check,
    /// The name in TLS and in gRPC's request.
    pub name: String,
    body: Option<BodyRule>,
    #[cfg(nginx_http_ssl)]
    tls: Option<Rc<Context>>,
}

/// What an upstream of nginx.conf has for the checks of lists that are posted for it.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// The files of its block.
    #[cfg(nginx_http_ssl)]
    tls: Option<Rc<Context>>,
}

impl Base {
    /// Of a block with these files.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration being read, whose pool outlives the result.
    pub unsafe fn configured(cf: *mut ngx_conf_t, files: &Files) -> Result<Self, AskError> {
        if files.is_empty() {
            return Ok(Self::default());
        }
        #[cfg(nginx_http_ssl)]
        {
            // SAFETY: the caller's word.
            let context = unsafe { Context::configured(cf, files) }.ok_or(AskError::Files)?;
            Ok(Self { tls: Some(Rc::new(context)) })
        }
        #[cfg(not(nginx_http_ssl))]
        {
            let _ = cf;
            Err(AskError::NoTls("https"))
        }
    }
}

impl Asked {
    /// Of a block of nginx.conf.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration being read, whose pool outlives the result.
    pub unsafe fn configured(
        cf: *mut ngx_conf_t,
        check: Check,
        base: &Base,
        host: &str,
    ) -> Result<Self, AskError> {
        // SAFETY: the caller's word.
        Self::new(check, base, host, |pattern| unsafe { Regex::configured(pattern, (*cf).pool) })
    }

    /// Of a list that was posted.
    pub fn posted(check: Check, base: &Base, host: &str) -> Result<Self, AskError> {
        Self::new(check, base, host, Regex::new)
    }

    fn new(
        check: Check,
        base: &Base,
        host: &str,
        compile: impl FnOnce(&str) -> Result<Regex, String>,
    ) -> Result<Self, AskError> {
        let body = match &check.body {
            Some(body) => {
                let regex = compile(&body.regex).map_err(AskError::Regex)?;
                let negated = body.negated;
                Some(BodyRule {
                    negated,
                    // A text that PCRE gives up on is not as it should be, either way.
                    matches: Rc::new(move |text| regex.matches(text).unwrap_or(negated)),
                })
            }
            None => None,
        };
        let name = check.ssl_name.clone().unwrap_or_else(|| host.to_owned());
        let wants_tls = check.kind.is_over_tls() || check.kind == Kind::SslHello;
        #[cfg(nginx_http_ssl)]
        {
            let shared = || Context::shared(check.ssl_verify).ok_or(AskError::Memory);
            let tls = match &base.tls {
                _ if !wants_tls => None,
                Some(tls) => Some(Rc::clone(tls)),
                None => Some(shared()?),
            };
            Ok(Self { check, name, body, tls })
        }
        #[cfg(not(nginx_http_ssl))]
        {
            let _ = base;
            match wants_tls {
                true => Err(AskError::NoTls(check.kind.name())),
                false => Ok(Self { check, name, body }),
            }
        }
    }

    /// The name that a certificate is for: without a port.
    #[cfg(nginx_http_ssl)]
    pub fn host(&self) -> &str {
        match self.name.rsplit_once(':') {
            Some((host, port))
                if !host.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                host
            }
            _ => &self.name,
        }
    }

    /// What the body of an answer has to be like.
    pub fn body(&self) -> Option<BodyRule> {
        self.body.clone()
    }

    /// What TLS connections have in common; none for types without.
    #[cfg(nginx_http_ssl)]
    pub fn tls(&self) -> Option<&Context> {
        self.tls.as_deref()
    }
}
