// Starts Swagger UI on the page at /docs. A file of its own, since the page's policy allows no script inside it.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Else the description is sent to a server on the Internet that checks it.
  validatorUrl: null,
});
