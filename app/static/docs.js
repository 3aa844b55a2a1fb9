// Starts Swagger UI on the page at /docs. A file of its own, since the page's policy allows no script inside it.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // With all groups open, Swagger UI draws only what is in sight, and the browser's search misses the rest.
  docExpansion: "none",
  filter: true,
  // Else the description is sent to a server on the Internet that checks it.
  validatorUrl: null,
});
