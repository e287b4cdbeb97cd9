//! The lanes of outcome records. The numbers are part of the stored format.

use fieldpost_store::queues::Lane;

/// Records that feedback is made of; forgotten as soon as it is.
pub(super) const FEEDBACK: Lane = Lane(1);

/// Messages that will never be completed, with everything that is known of them.
pub(super) const DEAD_LETTERS: Lane = Lane(2);

/// What became of completed messages.
pub(super) const HISTORY: Lane = Lane(3);

/// All of them.
pub(crate) const LANES: [Lane; 3] = [FEEDBACK, DEAD_LETTERS, HISTORY];
