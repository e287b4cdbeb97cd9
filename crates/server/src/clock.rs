//! The system's clock and source of chance.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fieldpost_model::{Clock, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
