//! The admin listener: HTTP for few callers, with bounds that keep idle and slow ones from piling up.
//!
//! Health and metrics answer whoever reaches the port, so a program that opens connections and says
//! nothing must cost neither memory nor the file descriptors that devices need.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// Time for the head of a request, also of the next one on a connection that stays.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Bytes of a request's head, and of what is buffered of a body, per connection.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Waits after the process ran out of descriptors, instead of spinning.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(200);

/// The running listener.
pub(crate) struct AdminServer {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Serves the routes from now on.
    pub(crate) fn start(listener: TcpListener, routes: Router) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(listener, routes, stopped));
        Self { stop, task }
    }

    /// Stops accepting and lets calls end; those that have not after `patience` are cut off.
    pub(crate) async fn stop(mut self, patience: Duration) {
        self.stop.send_replace(true);
        if tokio::time::timeout(patience, &mut self.task)
            .await
            .is_err()
        {
            // The connections are tasks of the set that this task owns, and end with it.
            self.task.abort();
            // Nothing is left of it once it has ended, however it did.
            let _ = self.task.await;
        }
    }
}

async fn run(listener: TcpListener, routes: Router, stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = until(stopped.clone()) => break,
            // Collecting the ended ones keeps the set as small as the number of open ones.
            Some(_ended) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let serving = serve(stream, routes.clone(), stopped.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin listener could not accept a connection");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve(stream: TcpStream, routes: Router, stopped: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = until(stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the admin listener ended");
    }
}

/// Waits for the word to stop, or for the end of whoever would give it.
async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn start(routes: Router) -> (AdminServer, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (AdminServer::start(listener, routes), address)
    }

    /// Moves the runtime's clock once nothing else is left to do, as paused time does by itself.
    async fn answer_of(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_caller_is_let_go_and_makes_room() {
        let routes = Router::new().route("/", get(async || "here"));
        let (server, address) = start(routes).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTT").await.unwrap();
            silent.push(stream);
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(ASK).await.unwrap();
        // It is answered, and closed in its turn when it has nothing more to ask.
        let answer = answer_of(&mut late).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"),
            "{answer}"
        );
        for mut stream in silent {
            answer_of(&mut stream).await;
        }
        server.stop(Duration::from_secs(1)).await;
        TcpStream::connect(address).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_ends_is_cut_off() {
        let routes = Router::new().route("/", get(std::future::pending::<()>));
        let (server, address) = start(routes).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(ASK).await.unwrap();
        // The call has begun when the server has read it, which its silence does not show.
        tokio::time::timeout(Duration::from_secs(5), stream.readable())
            .await
            .unwrap_err();
        server.stop(Duration::from_secs(1)).await;
        assert_eq!(answer_of(&mut stream).await, "");
    }
}
