"""The generated parts of docs/: pictures of plans and roles, options and costs (`make pages`)."""
