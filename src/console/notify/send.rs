//! One delivery to one recipient.

use super::http::{Post, post};
use super::message::Message;
use super::{forms, program};
use crate::config::{NotifyPlan, Way};
use crate::time::human;
use std::time::Duration;

/// Where Debian, Red Hat and the others have it.
const SENDMAIL: &str = "/usr/sbin/sendmail";

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// In words, without any secret.
    pub what: String,
    /// Whether another try may help.
    pub again: bool,
    /// How long the other side wants to be left alone.
    pub asked: Option<Duration>,
}

impl Trouble {
    pub(super) fn again(what: String) -> Self {
        Self { what, again: true, asked: None }
    }
}

/// One who is told, with the secrets that it takes.
#[derive(Clone)]
pub struct Recipient {
    /// What the plan says.
    pub plan: NotifyPlan,
    url: String,
    token: Option<String>,
}

impl Recipient {
    /// `url` and `token` are those of the plan, or what its variables and files hold.
    pub fn new(plan: NotifyPlan, url: Option<String>, token: Option<String>) -> Self {
        Self { plan, url: url.unwrap_or_default(), token }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Where it is, as far as that may be shown.
    pub fn shown(&self) -> String {
        match self.plan.kind {
            Way::Mail => format!("mail to {}", self.plan.to.join(", ")),
            Way::Command => self.plan.command.first().cloned().unwrap_or_default(),
            Way::Webhook | Way::Slack | Way::Ntfy => crate::config::Secret::new(self.url.as_str()).shown(),
        }
    }

    /// Tries once. What came back, in short.
    pub async fn deliver(&self, message: &Message) -> Result<String, Trouble> {
        match tokio::time::timeout(self.plan.timeout, self.deliver_slowly(message)).await {
            Ok(Ok(answer)) => Ok(self.without_secrets(&answer)),
            Ok(Err(trouble)) => Err(Trouble { what: self.without_secrets(&trouble.what), ..trouble }),
            Err(_) => Err(Trouble::again(format!("no answer within {}", human(self.plan.timeout)))),
        }
    }

    async fn deliver_slowly(&self, message: &Message) -> Result<String, Trouble> {
        let plan = &self.plan;
        let message = forms::addressed(plan, message);
        match plan.kind {
            Way::Webhook => self.http("application/json", Vec::new(), forms::webhook(plan, &message)).await,
            Way::Slack => self.http("application/json", Vec::new(), forms::slack(&message)).await,
            Way::Ntfy => {
                let (headers, body) = forms::ntfy(&message);
                self.http("text/plain; charset=utf-8", headers, body).await
            }
            Way::Mail => {
                let mut argv = match plan.command.as_slice() {
                    [] => vec![SENDMAIL.to_owned(), "-oi".to_owned()],
                    given => given.to_vec(),
                };
                if let Some(from) = &plan.from {
                    argv.extend(["-f".to_owned(), from.clone()]);
                }
                argv.push("--".to_owned());
                argv.extend(plan.to.iter().cloned());
                program::run(&argv, &forms::mail(plan, &message), &[]).await
            }
            Way::Command => {
                let input = forms::webhook(plan, &message);
                program::run(&plan.command, &input, &forms::variables(&message)).await
            }
        }
    }

    async fn http(
        &self,
        kind: &'static str,
        headers: Vec<(&'static str, String)>,
        body: String,
    ) -> Result<String, Trouble> {
        let mut headers: Vec<(String, String)> =
            headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        headers
            .extend(self.plan.headers.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())));
        if let Some(token) = &self.token {
            headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
        }
        post(&Post { url: &self.url, kind, headers, body }).await
    }

    /// An answer may repeat what it was asked.
    fn without_secrets(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let path =
            self.url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
        let headers = self.plan.headers.values().map(crate::config::Secret::reveal);
        for secret in headers.chain(self.token.as_deref()).chain(path).filter(|secret| secret.len() >= 6) {
            text = text.replace(secret, "\u{2026}");
        }
        text
    }
}
