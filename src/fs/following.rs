//! Remote handles while what they show moves on: the next snapshot of a running unit, a commit, another host's change.
//!
//! A file that has only grown goes on in the handles that are open on it: `tail -f` sees the new lines. One that was written over is
//! another file from then on: who has it open keeps what he has, and its node loses the name, so that who looks it up gets a new node.
//! (All handles of a node share the kernel's pages, so a node must have one content, of which those before are beginnings.)
//!
//! Whether it has only grown is told by the contents themselves ([`crate::cache::Cache::begins_with`]).

use std::sync::atomic::Ordering;

use super::{
    Fs, FsError, FsResult, NodeId,
    files::{Data, OpenFile},
    place::Winner,
};

impl Fs {
    /// Other hosts' layers have changed.
    pub(super) fn remote_news(&self) {
        self.news.fetch_add(1, Ordering::Release);
    }

    /// What remote handles compare with.
    pub(super) fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    /// Brings all remote handles of a node up to what its path shows now.
    pub(super) fn settle(&self, node: NodeId) -> FsResult<()> {
        if self.news() == 0 {
            return Ok(());
        }
        let handles = self.nodes.lock().handles_on(node);
        for file in handles.into_iter().filter_map(|fh| self.file(fh).ok()) {
            self.follow(&file)?;
        }
        Ok(())
    }

    /// Brings one up. Where it can't be told now, it stays as it is and is asked again.
    pub(super) fn follow(&self, file: &OpenFile) -> FsResult<()> {
        let news = self.news();
        let Some(old) = file.outdated(news) else { return Ok(()) };
        let path = self.path_of(file.node);
        let is_local = self.nodes.lock().brief(file.node).is_some_and(|brief| brief.local.is_some());
        // Without a name it is what it is; with an inode in the spool it goes over to that.
        let Some(path) = path.filter(|_| !is_local) else {
            file.seen(&old, None, news);
            return Ok(());
        };
        let new = match self.winner(&path, None) {
            Ok(Winner::Remote(new)) if new.file.is_some() => new,
            Ok(_) => {
                self.part(file.node);
                file.seen(&old, None, news);
                return Ok(());
            }
            Err(FsError::Unavailable { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        match self.committed.is_continued(&path, old.file, new.file)? {
            Some(true) => {
                file.seen(&old, Some(new), news);
                // From here on its pages are of both.
                self.paged.lock().expect("no code panics under this lock").remove(&file.node);
            }
            Some(false) => {
                self.part(file.node);
                file.seen(&old, None, news);
            }
            None => {}
        }
        Ok(())
    }

    /// The node keeps what its handles hold, and its names are free for what shows there now.
    fn part(&self, node: NodeId) {
        let mut nodes = self.nodes.lock();
        while let Some((parent, name)) = nodes.brief(node).and_then(|brief| brief.place) {
            nodes.detach(parent, &name);
        }
    }
}

impl OpenFile {
    /// What a remote handle shows, if it has seen fewer news.
    fn outdated(&self, news: u64) -> Option<Box<super::committed::Candidate>> {
        match &self.lock().data {
            Data::Remote(candidate, seen) if *seen != news => Some(candidate.clone()),
            Data::Remote(..) | Data::Local(_) | Data::Lost => None,
        }
    }

    /// A handle that showed `old` shows `new`, or goes on with it, as of `news`.
    fn seen(
        &self,
        old: &super::committed::Candidate,
        new: Option<Box<super::committed::Candidate>>,
        news: u64,
    ) {
        if let Data::Remote(candidate, seen) = &mut self.lock().data
            && candidate.file == old.file
        {
            *seen = news;
            if let Some(new) = new {
                *candidate = new;
            }
        }
    }
}
