//! A back end that reads the built-in endpoint, and goes on where it stood when it is cut off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_client::{AmqpError, ConnectionString, Event, Reader, ReaderOptions, Start, Trust};
use fieldpost_hub::clock::Clock;
use tokio::time::{sleep, timeout};

use crate::phase::{Phase, Phases};
use crate::random::Random;
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// One reader of all partitions.
pub(crate) struct SimReader {
    pub(crate) connection_string: ConnectionString,
    pub(crate) world: Arc<World>,
    pub(crate) phases: Phases,
    pub(crate) random: Random,
    /// The last sequence number read of each partition.
    pub(crate) read: BTreeMap<String, u64>,
}

impl SimReader {
    /// Runs until the world ends.
    pub(crate) async fn run(mut self) {
        let mut phases = self.phases.clone();
        tokio::select! {
            biased;
            () = phases.until(Phase::Over) => {}
            () = async {
                loop {
                    let why = self.connect().await;
                    let auditor = &self.world.auditor;
                    auditor.note(format_args!("the reader lost its connection: {why}"));
                    let wait = self.random.within(&(Duration::ZERO..Duration::from_secs(1)));
                    sleep(wait).await;
                }
            } => {}
        }
    }

    /// Reads until something breaks, and says what.
    async fn connect(&mut self) -> String {
        let opening = timeout(PATIENCE, open(&self.world, &self.connection_string));
        let mut reader = match opening.await {
            Ok(Ok(reader)) => reader,
            Ok(Err(why)) => return why,
            Err(_) => return "no answer".to_owned(),
        };
        match timeout(PATIENCE, self.receive(&mut reader)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer".to_owned(),
        }
        loop {
            match reader.next().await {
                Ok(event) => self.take(&event),
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn receive(&mut self, reader: &mut Reader) -> Result<(), AmqpError> {
        for partition in reader.partitions().await? {
            let start = match self.read.get(&partition) {
                Some(last) => Start::Sequence(last + 1),
                None => Start::Earliest,
            };
            reader.receive(&partition, start).await?;
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) {
        self.world.auditor.read(event);
        let last = self.read.insert(event.partition.clone(), event.sequence);
        if last >= Some(event.sequence) {
            let (partition, sequence) = (&event.partition, event.sequence);
            self.world.auditor.violation(format_args!(
                "a reader was given {partition}/{sequence} after {last:?}"
            ));
        }
    }
}

/// Reads everything that is stored, from the beginning.
pub(crate) async fn read_all(
    world: &World,
    connection_string: &ConnectionString,
) -> Result<Vec<Event>, String> {
    let mut reader = open(world, connection_string).await?;
    let failed = |error: AmqpError| error.to_string();
    let mut events = Vec::new();
    for partition in reader.partitions().await.map_err(failed)? {
        let end = reader.next_sequence(&partition).await.map_err(failed)?;
        if end == 0 {
            continue;
        }
        let mut partition_reader = open(world, connection_string).await?;
        let receiving = partition_reader.receive(&partition, Start::Earliest);
        receiving.await.map_err(failed)?;
        loop {
            // After a crash numbers are left out: the last one may be one of them.
            let next = timeout(PATIENCE, partition_reader.next()).await;
            let Ok(next) = next else { break };
            let event = next.map_err(failed)?;
            let last = event.sequence + 1 >= end;
            events.push(event);
            if last {
                break;
            }
        }
    }
    Ok(events)
}

async fn open(world: &World, connection_string: &ConnectionString) -> Result<Reader, String> {
    let options = ReaderOptions {
        connection_string: connection_string.clone(),
        address: None,
        trust: Trust::Network(Arc::new(world.network.clone())),
        consumer_group: "$Default".to_owned(),
        now: world.timer.now(),
    };
    Reader::connect(&options).await.map_err(|e| e.to_string())
}
