//! Which images go when the store has outgrown its budget.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::inventory::Key;

/// An image that was used or came so lately is most likely about to be used.
const LATELY: Duration = Duration::from_secs(600);

/// An image that may have to go.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) needs: HashSet<Key>,
    pub(super) last_used: SystemTime,
    /// An instance uses it.
    pub(super) stays: bool,
}

/// Chooses the images that go, those first that were not used for longest, until `total` bytes have become no more than
/// `budget`, or nothing is left that may go. `bytes` is what a blob or a disk takes. Gives their places in `images`.
pub(super) fn choose(
    images: &[Candidate],
    total: u64,
    budget: u64,
    now: SystemTime,
    bytes: impl Fn(&Key) -> u64,
) -> Vec<usize> {
    let mut needed: HashMap<&Key, usize> = HashMap::new();
    for key in images.iter().flat_map(|image| &image.needs) {
        *needed.entry(key).or_default() += 1;
    }
    let lately = |image: &Candidate| match now.duration_since(image.last_used) {
        Ok(age) => age < LATELY,
        // The clock was set back.
        Err(_) => true,
    };
    let mut order: Vec<usize> = (0..images.len())
        .filter(|index| !images[*index].stays && !lately(&images[*index]))
        .collect();
    // From its end.
    order.sort_by_key(|index| Reverse((images[*index].last_used, *index)));
    let mut left = total;
    let mut doomed = Vec::new();
    while left > budget
        && let Some(index) = order.pop()
    {
        doomed.push(index);
        for key in &images[index].needs {
            if let Some(count) = needed.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    left = left.saturating_sub(bytes(key));
                }
            }
        }
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::store::inventory::Kind;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn image(needs: &[&str], hours_ago: u64, stays: bool) -> Candidate {
        Candidate {
            needs: needs
                .iter()
                .map(|name| (Kind::Blob, Digest::of(name.as_bytes())))
                .collect(),
            last_used: now() - Duration::from_secs(hours_ago * 3600),
            stays,
        }
    }

    /// Every blob takes 10 bytes.
    fn chosen(images: &[Candidate], budget: u64) -> Vec<usize> {
        let all: HashSet<&Key> = images.iter().flat_map(|image| &image.needs).collect();
        choose(images, all.len() as u64 * 10, budget, now(), |_| 10)
    }

    #[test]
    fn those_go_first_that_were_not_used_for_longest() {
        let images = [
            image(&["a"], 1, false),
            image(&["b"], 3, false),
            image(&["c"], 2, false),
        ];
        for (budget, expected) in [
            (30, vec![]),
            (29, vec![1]),
            (20, vec![1]),
            (10, vec![1, 2]),
            (0, vec![1, 2, 0]),
        ] {
            assert_eq!(chosen(&images, budget), expected, "{budget}");
        }
    }

    #[test]
    fn what_is_used_or_was_just_now_stays() {
        let images = [
            image(&["a"], 9, true),
            image(&["b"], 0, false),
            image(&["c"], 1, false),
        ];
        assert_eq!(chosen(&images, 0), [2]);
    }

    #[test]
    fn shared_layers_count_when_the_last_image_with_them_goes() {
        let images = [
            image(&["shared", "a"], 3, false),
            image(&["shared", "b"], 2, false),
            image(&["c"], 1, false),
        ];
        // 40 bytes: the first frees 10, the second 20 more.
        assert_eq!(chosen(&images, 31), [0]);
        assert_eq!(chosen(&images, 30), [0]);
        assert_eq!(chosen(&images, 11), [0, 1]);
        assert_eq!(chosen(&images, 10), [0, 1]);
    }
}
