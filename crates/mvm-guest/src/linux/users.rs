//! Who a command runs as: `/etc/passwd` and `/etc/group` of the guest. Pure.

/// Somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Groups besides that.
    pub groups: Vec<u32>,
    pub name: String,
    pub home: String,
    pub shell: String,
}

/// There is nobody like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("the guest has no user {0:?}")]
    User(String),
    /// No such group.
    #[error("the guest has no group {0:?}")]
    Group(String),
}

/// Finds `user`, `uid`, `user:group` or `uid:gid`; root where nothing is said. A number need not be in the files: it is
/// then in group 0, unless one is said. Who gets a group by name or number gets no others.
///
/// # Errors
/// Where a name is in none of the files.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    // A name that is a number is looked for as a name first, as everywhere.
    let entry = find_user(passwd, |entry| entry.name == user)
        .or_else(|| find_user(passwd, |entry| Some(entry.uid) == number));
    let mut found = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            groups: Vec::new(),
            name: if uid == 0 { "root".into() } else { uid.to_string() },
            home: if uid == 0 { "/root".into() } else { "/".into() },
            shell: "/bin/sh".into(),
        },
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    match wanted_group {
        Some(wanted) => {
            let by_name = groups(group).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
            let gid = by_name.or_else(|| wanted.parse().ok());
            found.gid = gid.ok_or_else(|| UserError::Group(wanted.to_owned()))?;
        }
        None => {
            let is_in = |members: &str| members.split(',').any(|member| member == found.name);
            let others = groups(group).filter(|(_, gid, members)| *gid != found.gid && is_in(members));
            found.groups = others.map(|(_, gid, _)| gid).collect();
        }
    }
    Ok(found)
}

fn find_user(passwd: &str, wanted: impl Fn(&User) -> bool) -> Option<User> {
    let users = passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        let or = |value: &str, default: &str| if value.is_empty() { default } else { value }.to_owned();
        Some(User {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            groups: Vec::new(),
            name: name.to_owned(),
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    });
    users.into_iter().find(wanted)
}

/// Name, number and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000::/home/ann:\n77:x:7:7::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:ann\nwww:x:33:bob,ann\nlp:x:7:annabel\n";

    fn ids(wanted: &str) -> Result<(u32, u32, Vec<u32>, String), UserError> {
        find(wanted, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(ids(""), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(ids("ann"), Ok((1000, 1000, vec![33], "/home/ann".into())));
        assert_eq!(ids("1000"), ids("ann"));
        assert_eq!(ids("77").unwrap().0, 7);
        assert_eq!(ids("4242"), Ok((4242, 0, vec![], "/".into())));
        assert_eq!(ids("eve"), Err(UserError::User("eve".into())));
    }

    #[test]
    fn a_group_that_is_said_is_the_only_one() {
        assert_eq!(ids("ann:www"), Ok((1000, 33, vec![], "/home/ann".into())));
        assert_eq!(ids("4242:4343"), Ok((4242, 4343, vec![], "/".into())));
        assert_eq!(ids("ann:nobody"), Err(UserError::Group("nobody".into())));
    }

    #[test]
    fn without_files_there_is_root() {
        let user = find("", "", "").unwrap();
        assert_eq!((user.uid, user.home.as_str(), user.shell.as_str()), (0, "/root", "/bin/sh"));
    }
}
