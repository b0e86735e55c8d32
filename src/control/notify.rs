//! Tells systemd how the daemon fares (sd_notify(3)); does nothing where it isn't systemd's child.

use sd_notify::NotifyState;

/// The daemon serves.
pub fn ready() {
    send(NotifyState::Ready);
}

/// One line that `systemctl status` shows.
pub fn status(text: &str) {
    // A newline would start another variable of the message.
    send(NotifyState::Status(&text.replace('\n', " ")));
}

/// The daemon stops because it was asked to.
pub fn stopping() {
    send(NotifyState::Stopping);
}

fn send(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("can't notify systemd: {error}");
    }
}
