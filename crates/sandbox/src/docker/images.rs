//! Images: finding and fetching them, and making one of a sandbox.

use std::{collections::HashMap, time::Duration};

use bollard::{
    models::{ContainerConfig, ImageInspect},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveImageOptionsBuilder,
    },
};
use futures_util::TryStreamExt;
use tracing::{debug, info};

use super::{DEPLOYMENT_LABEL, DockerBackend, SANDBOX_LABEL, of_container, status_of};
use crate::{Handle, OWN_IMAGES, SandboxError};

/// Time for the daemon to make an image: it copies everything that the sandbox has written.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// What an image of a sandbox does by itself, for whoever looks at it with `docker run`. A sandbox is
/// told its program by its plan, whatever the image says.
const CHANGES: &str = "ENTRYPOINT [\"/bin/bash\"]";

impl DockerBackend {
    /// Makes sure that `image` is there, fetching it where that is allowed; for start-up, so that
    /// the first session does not find out.
    ///
    /// # Errors
    /// [`SandboxError::NoImage`] with what to do about it.
    pub async fn ensure_image(&self, image: &str) -> Result<(), SandboxError> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(()),
            Err(error) if status_of(&error) == Some(404) => self.fetch_image(image).await,
            Err(error) => Err(SandboxError::backend("look for the image")(error)),
        }
    }

    pub(super) async fn fetch_image(&self, image: &str) -> Result<(), SandboxError> {
        let missing = |reason: &str| {
            SandboxError::NoImage(format!(
                "{image}{reason}. Build the default one with `docker build -t {image} docker/sandbox` \
                 (`./dev image` does), or fetch another with `docker pull`"
            ))
        };
        if image.starts_with(OWN_IMAGES) {
            return Err(SandboxError::NoImage(format!(
                "{image} is not there any more"
            )));
        }
        if !self.options.pull {
            return Err(missing(""));
        }
        // Without a tag, the daemon would fetch every tag there is.
        let named = image.rsplit('/').next().unwrap_or(image);
        let reference = if named.contains([':', '@']) {
            image.to_owned()
        } else {
            format!("{image}:latest")
        };
        info!(image = %reference, "fetching a sandbox image");
        self.docker
            .create_image(
                Some(
                    CreateImageOptionsBuilder::new()
                        .from_image(&reference)
                        .build(),
                ),
                None,
                None,
            )
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(|error| missing(&format!(" (fetching failed: {error})")))
    }

    /// The id of an image's content, fetching it where that is allowed.
    pub(super) async fn identify_image(&self, image: &str) -> Result<String, SandboxError> {
        let mut found = self.docker.inspect_image(image).await;
        if found
            .as_ref()
            .is_err_and(|error| status_of(error) == Some(404))
        {
            self.fetch_image(image).await?;
            found = self.docker.inspect_image(image).await;
        }
        let found = found.map_err(SandboxError::backend("look for the image"))?;
        found
            .id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| SandboxError::Protocol("an image without id".to_owned()))
    }

    pub(super) async fn find_image(&self, image: &str) -> Result<bool, SandboxError> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(error) if status_of(&error) == Some(404) => Ok(false),
            Err(error) => Err(SandboxError::backend("look for the image")(error)),
        }
    }

    /// The hands are in a volume, and so is nothing of them in the image but the directory they are
    /// mounted at.
    pub(super) async fn commit_image(
        &self,
        handle: &Handle,
        image: &str,
        labels: &[(String, String)],
    ) -> Result<(), SandboxError> {
        let (repository, tag) = reference(image)?;
        let replaced = match self.docker.inspect_image(image).await {
            Ok(image) => image.id,
            Err(_) => None,
        };
        let mut labels: HashMap<String, String> = labels.iter().cloned().collect();
        labels.insert(DEPLOYMENT_LABEL.to_owned(), self.options.deployment.clone());
        // The image takes over the container's labels, and a container of the image the image's: it
        // must not be taken for this sandbox.
        labels.insert(SANDBOX_LABEL.to_owned(), String::new());
        let options = CommitContainerOptionsBuilder::new()
            .container(&handle.0)
            .repo(repository)
            .tag(tag)
            .pause(true)
            .changes(CHANGES)
            .build();
        let config = ContainerConfig {
            labels: Some(labels),
            ..Default::default()
        };
        self.docker
            .clone()
            .with_timeout(COMMIT_TIMEOUT)
            .commit_container(options, config)
            .await
            .map_err(|error| of_container("make an image of a container", error))?;
        if let Some(id) = replaced {
            self.remove_nameless(&id).await;
        }
        Ok(())
    }

    /// An image whose name was given to another one: nobody else would ever remove it. It stays where
    /// it is in use.
    async fn remove_nameless(&self, id: &str) {
        let named = |image: ImageInspect| image.repo_tags.is_some_and(|tags| !tags.is_empty());
        if self.docker.inspect_image(id).await.is_ok_and(named) {
            return;
        }
        if let Err(error) = self.untag_image(id).await {
            debug!(%error, "an image that was replaced stays");
        }
    }

    pub(super) async fn untag_image(&self, image: &str) -> Result<(), SandboxError> {
        let options = RemoveImageOptionsBuilder::new().build();
        match self.docker.remove_image(image, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(error) if status_of(&error) == Some(404) => Ok(()),
            Err(error) => Err(SandboxError::backend("remove an image")(error)),
        }
    }
}

/// Repository and tag of a name that has both.
fn reference(image: &str) -> Result<(&str, &str), SandboxError> {
    match image.rsplit_once(':') {
        Some((repository, tag))
            if !repository.is_empty() && !tag.is_empty() && !tag.contains('/') =>
        {
            Ok((repository, tag))
        }
        _ => Err(SandboxError::backend("name an image")(format!(
            "{image:?} is no repository:tag"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_under_a_whole_name_only() {
        assert_eq!(reference("a:b").unwrap(), ("a", "b"));
        assert_eq!(reference("host:5000/a:b").unwrap(), ("host:5000/a", "b"));
        for bad in ["", "a", "a:", ":b", "host:5000/a"] {
            reference(bad).unwrap_err();
        }
    }
}
