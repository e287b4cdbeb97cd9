//! Every point at which a connection can break, one by one, and everything that may come then.

use super::*;

/// How far a message has come when the connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The hub has taken it up and could not write it.
    Unwritten,
    /// Written, and never read.
    Unread,
    /// The device has it.
    Received,
    /// The device has acknowledged it, and the hub did not get to see the whole of that.
    AckLost,
    /// The hub knows, and the store has not said yet that it is durable.
    Settling,
    /// The hub knows, and the store lost it.
    SettleLost,
    /// Over and done with.
    Settled,
}

/// What comes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The device comes back to its session.
    Resume,
    /// It comes back before the old connection is known to be gone.
    TakeOver,
    /// It comes back and wants none of what was.
    Clean,
    /// It comes back to a hub that crashed meanwhile.
    Restart,
}

#[tokio::test]
async fn wherever_a_connection_breaks_nothing_is_lost_and_nothing_comes_twice() {
    use Next::{Clean, Restart, Resume, TakeOver};
    use Point::{AckLost, Received, SettleLost, Settled, Settling, Unread, Unwritten};
    for point in [Unwritten, Unread, Received, AckLost, Settling, Settled] {
        for next in [Resume, TakeOver, Clean, Restart] {
            walk(point, next).await;
        }
    }
    // A store that lost something takes nothing more before it is opened anew.
    walk(SettleLost, Restart).await;
}

async fn walk(point: Point, next: Next) {
    let case = format!("{point:?}, {next:?}");
    let mut fleet = Fleet::automatic().await;
    // Room for CONNACK and SUBACK, and not for a message.
    let room = if point == Point::Unwritten {
        64
    } else {
        1 << 20
    };
    let mut old = Device::connect_within(&fleet.hub, &fleet.hello(), room);
    let new_session = Heard::Connack {
        session_present: false,
    };
    assert_eq!(hear(&mut old).await, new_session, "{case}");
    old.subscribe(&[(FILTER, Qos::AtLeastOnce)]);
    assert_eq!(hear(&mut old).await, Heard::Suback, "{case}");
    {
        let mut sender = fleet.hub.hub.c2d().sender("service");
        // The one that it is about, and one that is never acknowledged before the break.
        send(&mut sender, 1).await;
        send(&mut sender, 2).await;
    }
    settle_down().await;
    let mut ids = None;
    if !matches!(point, Point::Unwritten | Point::Unread) {
        let heard = hear_all(&mut old).await;
        let [Heard::Command(first), Heard::Command(second)] = heard[..] else {
            panic!("{case}: {heard:?}");
        };
        assert_eq!([first.number, second.number], [1, 2], "{case}");
        assert!(!first.dup && !second.dup, "{case}");
        let both = (first.packet_id.unwrap(), second.packet_id.unwrap());
        assert_ne!(both.0, both.1, "{case}");
        ids = Some(both);
    }
    let queues = Arc::clone(&fleet.hub.store.queues);
    if let Some((first, _)) = ids {
        let ack = puback(first);
        match point {
            Point::AckLost => old.raw(&ack[..3]).await,
            Point::Settling => {
                queues.withhold(true);
                old.raw(&ack).await;
                assert_eq!(hear_all(&mut old).await, [], "{case}");
            }
            Point::SettleLost => {
                queues.fail_next();
                old.raw(&ack).await;
            }
            Point::Settled => {
                old.raw(&ack).await;
                assert_eq!(hear_all(&mut old).await, [], "{case}");
                assert_eq!(waiting(&fleet).await, 1, "{case}");
            }
            Point::Unwritten | Point::Unread | Point::Received => {}
        }
        settle_down().await;
    }

    let mut hello = fleet.hello();
    hello.clean_session = next == Next::Clean;
    let mut new = match next {
        Next::Resume | Next::Clean => {
            old.ended().await;
            Device::connect(&fleet.hub, &hello)
        }
        Next::TakeOver => {
            let mut new = Device::connect(&fleet.hub, &hello);
            new.flush().await;
            settle_down().await;
            drop(old);
            new
        }
        Next::Restart => {
            kill(old).await;
            fleet.hub.store.log.set_health(Health::OK);
            fleet.hub.crash(Arc::new(SeededChance::new(8))).await;
            Device::connect(&fleet.hub, &fleet.hello())
        }
    };
    let connack = Heard::Connack {
        session_present: next != Next::Clean,
    };
    assert_eq!(hear(&mut new).await, connack, "{case}");
    if next == Next::Clean {
        assert_eq!(hear_all(&mut new).await, [], "{case}");
        new.subscribe(&[(FILTER, Qos::AtLeastOnce)]);
        assert_eq!(hear(&mut new).await, Heard::Suback, "{case}");
    }
    let mut heard = Vec::new();
    for heard_now in hear_all(&mut new).await {
        let Heard::Command(command) = heard_now else {
            panic!("{case}: {heard_now:?}");
        };
        heard.push(command);
    }
    // The store in memory has carried out what it has not answered; a real one may have lost it.
    let is_over = matches!(point, Point::Settling | Point::Settled);
    let expected: &[u32] = if is_over { &[2] } else { &[1, 2] };
    let numbers: Vec<_> = heard.iter().map(|command| command.number).collect();
    assert_eq!(numbers, expected, "{case}");
    let goes_on = matches!(next, Next::Resume | Next::TakeOver);
    assert!(heard.iter().all(|command| command.dup == goes_on), "{case}");
    let new_ids: Vec<_> = heard
        .iter()
        .filter_map(|command| command.packet_id)
        .collect();
    if let Some((first, second)) = ids {
        let old_ids = [first, second];
        if goes_on {
            let expected = if is_over { &old_ids[1..] } else { &old_ids[..] };
            assert_eq!(new_ids, expected, "{case}");
        } else {
            assert!(!new_ids.contains(&first), "{case}");
            assert!(!new_ids.contains(&second), "{case}");
        }
        // Late acknowledgements of the old connection, where they name nothing of this one.
        for id in old_ids.iter().filter(|id| !new_ids.contains(id)) {
            new.raw(&puback(*id)).await;
        }
        assert_eq!(hear_all(&mut new).await, [], "{case}");
    }
    queues.withhold(false);
    assert_eq!(hear_all(&mut new).await, [], "{case}");
    assert_eq!(waiting(&fleet).await, heard.len() as u64, "{case}");
    for id in &new_ids {
        new.raw(&puback(*id)).await;
    }
    assert_eq!(hear_all(&mut new).await, [], "{case}");
    assert_eq!(waiting(&fleet).await, 0, "{case}");
    new.ended().await;
    let mut last = fleet.connected().await;
    last.subscribe(&[(FILTER, Qos::AtLeastOnce)]);
    assert_eq!(hear_all(&mut last).await, [Heard::Suback], "{case}");
}
